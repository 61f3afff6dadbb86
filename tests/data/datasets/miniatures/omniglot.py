"""A miniature of Omniglot."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import drawing


def make_omniglot(
    root: Path,
    *,
    num_alphabets: int = 2,
    characters_per_alphabet: int = 5,
    drawings_per_character: int = 6,
) -> Path:
    """Draw so many alphabets for each of the two sets; 1-bit PNGs of 105 x 105, black strokes on white."""
    # Real names hold brackets, which are special to glob.
    alphabets = [f"Alphabet_of_the_({number:02})" for number in range(1, 2 * num_alphabets + 1)]
    character_id = 0
    for number, alphabet in enumerate(alphabets):
        folder = "images_background" if number < num_alphabets else "images_evaluation"
        for character in range(1, characters_per_alphabet + 1):
            character_id += 1
            place = root / folder / alphabet / f"character{character:02}"
            place.mkdir(parents=True)
            for drawer in range(1, drawings_per_character + 1):
                drawing(character_id, drawer).save(place / f"{character_id:04}_{drawer:02}.png")
    return root
