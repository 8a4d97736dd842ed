"""Trains the tokenizer: sentencepiece BPE, 4,096 pieces, byte fallback, no normalisation.

Control pieces are CONTROL, never USER_DEFINED: they cannot be reached from text.
A newline is ordinary text: no learnt piece contains it, so it is always the byte piece <0x0A>.
The one character that does not survive a round trip is U+2581, which sentencepiece itself
uses for a space.
"""
import argparse
import io
import json
import pathlib
import random

import sentencepiece

import data

VOCAB_SIZE = 4096


def training_lines(scenes):
    """Every name and every line of text of the scenes."""
    for scene in scenes:
        for name, text in data.scene_messages(scene):
            yield name
            yield from text.split("\n")


def train_tokenizer(scenes, path):
    """Trains on the scenes and writes the model to path.

    It goes through a writer: a model_prefix would be stored in the file, with the folders of this machine.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(training_lines(scenes))),
        model_writer=model, model_type="bpe", vocab_size=VOCAB_SIZE,
        byte_fallback=True, character_coverage=1.0,
        normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, split_digits=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        unk_piece="<unk>", bos_piece="<bos>", eos_piece="<end>",
        control_symbols=["<turn>", "<text>"],
        num_threads=1, minloglevel=1)
    path.write_bytes(model.getvalue())


def random_text(rng):
    """Unicode text of up to 40 scalar values, spaces, newlines and controls included."""
    ranges = ((1, 0x7F), (0x20, 0x2FF), (0x370, 0x1FFF), (0x3000, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x10FFFF))
    chars = []
    for _ in range(rng.randrange(40)):
        low, high = rng.choice(ranges)
        chars.append(rng.choice((" ", "  ", "\n", "\t", chr(rng.randint(low, high)))))
    return "".join(chars).replace("\u2581", "")


def check_tokenizer(tokenizer, scenes, seed=1):
    """Raises unless every text of the corpus, and random text, comes back as it was."""
    pieces = [tokenizer.id_to_piece(i) for i in range(5)]
    if pieces != ["<unk>", "<bos>", "<end>", "<turn>", "<text>"] or tokenizer.vocab_size() != VOCAB_SIZE:
        raise ValueError(f"unexpected layout: {pieces}, {tokenizer.vocab_size()} pieces")
    if not all(tokenizer.is_control(i) for i in (1, 2, 3, 4)):
        raise ValueError("a control piece is not CONTROL")
    rng = random.Random(seed)
    texts = [part for scene in scenes for message in data.scene_messages(scene) for part in message]
    texts += [random_text(rng) for _ in range(20000)]
    texts += ["", " ", "\n", "\n\n", " \n ", "  two  spaces  ", "tab\t", "a\r\nb", "\x00"]
    texts += ["<turn>", "<text>", "<end>", "<bos>", "<unk>", "<0x0A>", "a<turn>b<end>", "</s>", "<s>"]
    for text in texts:
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids) != text:
            raise ValueError(f"does not round trip: {text!r} -> {ids}")
        if any(i < 5 for i in ids):
            raise ValueError(f"a control or unknown id from text: {text!r} -> {ids}")
    return len(texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="model directory; tokenizer.model goes there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    scenes = data.load_scenes()
    parts = data.split(scenes)
    train_tokenizer(parts["train"], args.out / "tokenizer.model")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(args.out / "tokenizer.model"))
    checked = check_tokenizer(tokenizer, scenes)
    counts = {part: sum(map(len, data.scene_sequences(data.encode_plays(tokenizer, part_scenes), None)))
              for part, part_scenes in parts.items()}
    print(json.dumps({"texts_checked": checked, "tokens": counts}))


if __name__ == "__main__":
    main()
