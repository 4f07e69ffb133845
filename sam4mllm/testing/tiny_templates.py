"""Chat templates of the tiny MLLMs: ChatML, and those of published checkpoints that differ from it around an answer.

A comment names the published checkpoint of each; the parts for system messages and videos are left out.
"""

from __future__ import annotations

_IMAGES = "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
_TEXTS = "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"


def chat_ml(image: str) -> str:
    """Return a ChatML template with `image` as the placeholder of the image."""
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


# HuggingFaceTB/SmolVLM2-2.2B-Instruct, HuggingFaceM4/Idefics3-8B-Llama3. The prompt lacks the space before an answer.
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

# llava-hf/llava-onevision-qwen2-7b-ov-hf. The prompt lacks the space before the newline.
LLAVA_ONEVISION = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    + _IMAGES
    + "{{ '<image>' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    + _TEXTS
    + "{{ '\n' + content['text'] }}{% endfor %}{% else %}"
    + _TEXTS
    + "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# apple/FastVLM-7B, as transformers has it. The prompt lacks one of two newlines, which are one token together.
FAST_VLM = (
    "{% for message in messages %}{% if loop.first %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    + _IMAGES
    + "{{ '<image>' }}{% endfor %}"
    + _TEXTS
    + "{{ '\n' + content['text'] }}{% endfor %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# llava-hf/llava-1.5-7b-hf. The prompt lacks the space before an answer, and no token ends an answer.
LLAVA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    + _IMAGES
    + "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    + _TEXTS
    + "{{ content['text'] + ' ' }}{% endfor %}{% else %}"
    + _TEXTS
    + "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
