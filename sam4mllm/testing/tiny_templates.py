"""Chat templates of the tiny MLLMs: those of published checkpoints, written anew.

They render a conversation as the published ones do: system messages, white space, thinking blocks, tokens that begin
and end a turn. Left out are tools, videos and system messages of the caller. A comment names the checkpoint, and
states "reconstructed" where it is written from documentation or from memory of it.
"""

from __future__ import annotations

_IMAGES = "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
_TEXTS = "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def chat_ml(image: str) -> str:
    """Return a ChatML template with `image` as the placeholder of the image.

    It is that of Qwen3-VL and, with a newline after the image, of InternVL3-8B-hf; for Molmo2 it is reconstructed.
    """
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def chat_ml_with_thinking(image: str, *, thinks: bool) -> str:
    """Return the template of Qwen3.5, which drops thinking blocks of all turns before the last question.

    `thinks` is whether `enable_thinking` is on by default: it is in Qwen/Qwen3.5-4B, and not in openbmb/MiniCPM-V-4_6.
    """
    default = "" if thinks else "{%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif %}"
    return (
        default + "{%- macro text_of(parts) %}{%- for part in parts %}"
        f"{{{{- {image!r} if part.type == 'image' else part.text }}}}{{%- endfor %}}{{%- endmacro %}}"
        "{%- set ns = namespace(last_query_index=messages | length - 1) %}{%- for message in messages %}"
        "{%- if message.role == 'user' %}{%- set ns.last_query_index = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
        "{%- if message.role == 'assistant' and loop.index0 > ns.last_query_index %}"
        f"{{{{- {_EMPTY_THOUGHT!r} }}}}{{%- endif %}}"
        "{{- text_of(message.content) | trim + '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}"
        f"{{{{- {_EMPTY_THOUGHT!r} }}}}{{%- else %}}{{{{- '<think>\n' }}}}{{%- endif %}}{{%- endif %}}"
    )


# Qwen/Qwen2-VL-7B-Instruct, Qwen/Qwen2.5-VL-7B-Instruct.
QWEN2_VL = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + chat_ml("<|vision_start|><|image_pad|><|vision_end|>")
)

_SMOLVLM = (
    "{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# HuggingFaceTB/SmolVLM2-2.2B-Instruct. The prompt lacks the space before an answer.
SMOLVLM = "<|im_start|>" + _SMOLVLM
# HuggingFaceM4/Idefics3-8B-Llama3.
IDEFICS3 = "<|begin_of_text|>" + _SMOLVLM

# llava-hf/llama3-llava-next-8b-hf, reconstructed: its system message is longer.
LLAVA_NEXT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nYou see images and answer questions.<|eot_id|>' }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    + _IMAGES
    + "{{ '<image>\n' }}{% endfor %}"
    + _TEXTS
    + "{{ content['text'] }}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
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

# google/gemma-3-4b-it.
GEMMA3 = (
    "{{ bos_token }}{%- for message in messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('Roles alternate.') }}"
    "{%- endif -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{%- for part in message['content'] -%}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] | trim }}{%- endfor -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


def gemma4(*, closes_thought: bool) -> str:
    """Return Gemma 4's template; with `closes_thought` its prompt has an empty thought, which training lacks.

    google/gemma-4-E2B-it has none; in google/gemma-4-31B-it and google/gemma-4-12B-it it is reconstructed.
    """
    thought = "{%- if not enable_thinking | default(false) -%}{{ '<|channel>thought\n<channel|>' }}{%- endif -%}"
    return (
        "{{ bos_token }}{%- if enable_thinking is defined and enable_thinking -%}"
        "{{ '<|turn>system\n<|think|><turn|>\n' }}{%- endif -%}{%- for message in messages -%}"
        "{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
        "{%- for part in message['content'] -%}"
        "{{ '\n\n<|image|>\n\n' if part['type'] == 'image' else part['text'].split('<channel|>')[-1] | trim }}"
        "{%- endfor -%}{{ '<turn|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}" + (thought if closes_thought else "") + "{%- endif -%}"
    )


_GLM_TURN = (
    "[gMASK]<sop>{%- for message in messages -%}"
    "{{ '<|assistant|>\n' if message['role'] == 'assistant' else '<|user|>\n' }}"
)
# zai-org/GLM-4.1V-9B-Thinking, reconstructed. No token ends an answer; the next turn's does.
GLM4V = (
    _GLM_TURN + "{%- for part in message['content'] -%}"
    "{{ '<|begin_of_image|><|image|><|end_of_image|>' if part['type'] == 'image' else part['text'] }}"
    "{%- endfor -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
)

# zai-org/GLM-4.5V, zai-org/GLM-4.6V, reconstructed. A word in the question and an empty block turn thinking off.
GLM46V = (
    _GLM_TURN + "{%- if message['role'] == 'assistant' -%}{{ '<think></think>\n' }}{%- endif -%}"
    "{%- for part in message['content'] -%}"
    "{{ '<|begin_of_image|><|image|><|end_of_image|>' if part['type'] == 'image' else part['text'] | trim }}"
    "{%- endfor -%}{%- if message['role'] == 'user' and enable_thinking is defined and not enable_thinking -%}"
    "{{ '/nothink' }}{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '\n<think></think>' }}{%- endif -%}{%- endif -%}"
)

# LiquidAI/LFM2.5-VL-1.6B.
LFM2_VL = "{{- bos_token -}}" + chat_ml("<image>")
