"""The prompts of the SmolLM2 example: short questions and requests, 48 to train on and 12 held out.

python examples/smollm2/prompts.py --out examples/smollm2/data
"""

import argparse
import json
from pathlib import Path

TRAIN = """\
What do plants need to grow?
Name a fruit that is red.
Write one sentence about the rain.
How can I wake up early?
Why do birds sing in the morning?
What is a good name for a small dog?
Tell me one fact about the Moon.
How do I make a cup of tea?
What should I wear when it snows?
Describe a quiet street in a few words.
Why is sleep good for us?
Give me a tip for learning a language.
What is bread made of?
Write a short greeting for a friend.
How do bees help a garden?
What does a teacher do?
Name two things found in a kitchen.
Why do leaves change colour in autumn?
How do I keep milk fresh?
Say something kind about old books.
What is the sea like in winter?
How can I save a little money?
Why do we wash our hands?
Describe a cat that is asleep.
What can I cook with eggs and rice?
Give one reason to go for a walk.
What is a river?
How do I fold a shirt?
Name an animal that can fly.
Write a sentence that has the word lamp in it.
Why do people tell stories?
What makes a good neighbour?
How do I clean a window?
What is the first meal of the day called?
Describe the smell of coffee.
Why are bridges built?
Give me an idea for a gift.
How do clouds form?
What do you find in a library?
Write a short note to say thank you.
Why do we have seasons?
How can I remember a phone number?
Name a sport that needs a ball.
What is a candle used for?
Describe a market on a Saturday.
How do fish breathe?
Why does ice float on water?
What would you pack for a day at the beach?
""".splitlines()

HELDOUT = """\
What do cows eat?
Write one sentence about the wind.
How can I fall asleep faster?
Name a vegetable that is green.
Why do we need water?
Give me a tip for keeping a room tidy.
What is a mountain?
How do I boil an egg?
Describe a garden after the rain.
Why do dogs bark?
What does a baker do?
Write a short birthday wish.
""".splitlines()


def write(folder: Path) -> None:
    """Write `train.jsonl` and `heldout.jsonl` into `folder`, which is made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in (("train", TRAIN), ("heldout", HELDOUT)):
        rows = ({"id": f"{name}-{i:02d}", "problem": text} for i, text in enumerate(prompts))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    write(parser.parse_args().out)
