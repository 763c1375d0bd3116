"""The words of a model card; what is in braces is filled in by `model_card.py`."""

FRAME = """# {title}

`{student}`, distilled on its own samples from {teachers} (on-policy distillation).

## Recipe

{recipe}

## Data

{data}

## Numbers

{numbers}

## Use

{use}

## How it was made

{made}

## Limitations

{limits}
"""

USE = """`generation_config.json` has every stop token of student and teacher, and the sampling of training
({sampling}); both libraries take them from there.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
model = AutoModelForCausalLM.from_pretrained("{path}")
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
outputs = model.generate(**inputs, max_new_tokens=1024)
print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

```python
from vllm import LLM

model = LLM("{path}")
sampling = model.get_default_sampling_params()
sampling.max_tokens = 1024
print(model.chat([{{"role": "user", "content": "..."}}], sampling)[0].outputs[0].text)
```"""
