"""A small real tokenizer: one token for each word of a list, and a chat template that writes the role's name."""

from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% if think %} think{% endif %}{% endif %}"
)
WORDS = ["[unk]", "system", "user", "assistant", "be", "brief", "one", "two", "think", "plus"]


def word_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `WORDS`, by their places."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    model = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[unk]"))
    model.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[unk]", chat_template=template)
