"""The chat templates of the families that do not speak plain ChatML, as their checkpoints publish them.

What they do between a prompt and its answer is each one's own. The text is that of the checkpoints named, without the
parts for system messages and videos. This module knows no model.
"""

from __future__ import annotations

# HuggingFaceTB/SmolVLM2-2.2B-Instruct, HuggingFaceM4/Idefics3-8B-Llama3. The prompt lacks the space before an answer.
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
