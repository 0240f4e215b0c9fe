"""Japanese Vowels: nine speakers told apart by how they say a diphthong; sequences of 7 to 29 frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from jdl.data.download import Part, contents

_FOLDER = "https://raw.githubusercontent.com/aeon-toolkit/aeon/v1.0.0/aeon/datasets/data/JapaneseVowels/"
_ARCHIVE = "JapaneseVowels.zip"

PARTS = {
    name: Part(
        sha256,
        (name, f"{_ARCHIVE}!{name}"),
        (_FOLDER + name, f"https://timeseriesclassification.com/aeon-toolkit/{_ARCHIVE}"),
    )
    for name, sha256 in {
        "JapaneseVowels_TRAIN.ts": "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
        "JapaneseVowels_TEST.ts": "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
    }.items()
}

SPEAKERS = tuple(f"speaker {i}" for i in range(1, 10))

SOURCE = (
    "Japanese Vowels, https://archive.ics.uci.edu/dataset/128/japanese+vowels, CC BY 4.0; "
    "Kudo, Toyama and Shimbo, Multidimensional curve classification using passing-through regions, 1999"
)


def parse_ts(text: str, name: str = "file") -> tuple[list[np.ndarray], list[str]]:
    r"""Sequences and labels of a ``.ts`` file, in which sequences may differ in length.

    After a line ``@data`` comes one example a line: channels separated by colons, each of them values
    separated by commas, and the label last.

    Args:
        text: the file.
        name: what errors call it.

    Returns:
        N sequences float32 [T_n, D], and N labels.

    Raises:
        ValueError: if the text is no such file, naming the line.

    Example:
        >>> sequences, labels = parse_ts("@data\n1,2,3:4,5,6:vowel\n")
        >>> sequences[0].tolist(), labels
        ([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], ['vowel'])
    """
    lines = text.split("\n")
    heads = [i for i, line in enumerate(lines) if line.strip().lower() == "@data"]
    if not heads:
        raise ValueError(f"{name} is no .ts file: it has no line @data")
    sequences, labels, width = [], [], None
    for i, line in enumerate(lines[heads[0] + 1 :], heads[0] + 2):
        if not line.strip():
            continue
        *channels, label = line.strip().split(":")
        width = width or len(channels)
        try:
            values = np.array([channel.split(",") for channel in channels], np.float32)
        except ValueError as error:
            raise ValueError(f"{name}, line {i}: {error}") from None
        if values.ndim != 2 or len(values) != width or not np.isfinite(values).all():
            raise ValueError(f"{name}, line {i}: expected {width} channels of finite numbers and a label")
        sequences.append(values.T)
        labels.append(label)
    if not sequences:
        raise ValueError(f"{name} holds no examples")
    return sequences, labels


def japanese_vowels() -> tuple[dict[str, Any], dict[str, Any]]:
    """Training and test parts.

    Returns:
        Two dictionaries of ``inputs``, themselves ``sequence`` float32 [N, 29, 12] (12 cepstrum coefficients
        a frame, zeros after the end) and ``lengths`` int32 [N], and ``labels`` int32 [N], speakers 0 to 8.

    Raises:
        FileNotFoundError: if the files are not on this machine and cannot be downloaded.
    """
    parsed = {
        name: parse_ts(data.decode(), name) for name, data in contents("japanese_vowels", PARTS).items()
    }
    longest = max(len(sequence) for sequences, _ in parsed.values() for sequence in sequences)

    def part(sequences: list[np.ndarray], labels: list[str]) -> dict[str, Any]:
        lengths = np.array([len(sequence) for sequence in sequences], np.int32)
        padded = np.zeros((len(sequences), longest, sequences[0].shape[1]), np.float32)
        for row, sequence in zip(padded, sequences, strict=True):
            row[: len(sequence)] = sequence
        return {
            "inputs": {"sequence": padded, "lengths": lengths},
            "labels": np.array(labels, np.int32) - 1,
        }

    train, test = (part(*parsed[name]) for name in PARTS)
    return train, test
