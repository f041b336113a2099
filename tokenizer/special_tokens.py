"""RoBERTa's special tokens, the symbols of bytes, and names that a further special token can
have."""

from robustly.tokenizer.words import PatternName, split_words

# Ids 0 to 3, as in fairseq; <mask> has the last id.
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
MASK_TOKEN = "<mask>"
CONTROL_TOKENS = (*SPECIAL_TOKENS, MASK_TOKEN)
"""Those that a model's input is made with. In a text, their names are plain text."""


def byte_symbols() -> list[str]:
    """The printable character that stands for each byte 0..255 in vocabulary files (GPT-2's
    `bytes_to_unicode`).

    Printable Latin-1 characters stand for themselves, the other 68 bytes for the characters from
    U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]

    return [
        chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)
    ]


def could_be_learned(token: str, pattern: PatternName) -> bool:
    """Whether training could make a token: if its bytes are one word, or some bytes amid a
    character."""
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    if not token or any(symbol not in byte_of for symbol in token):
        return False

    try:
        return len(split_words(bytes(map(byte_of.__getitem__, token)).decode(), pattern)) == 1
    except UnicodeDecodeError:
        return True
