"""The models and prompts that ship with textgym: data, no code."""
