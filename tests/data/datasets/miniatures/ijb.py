"""Miniatures of IJB-B and IJB-C."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

HEADER = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT,FRAME_NUM,GENDER\n"


def make_ijbc(root: Path, *, num_subjects: int = 4, benchmark: str = "ijbc", gallery: str = "G") -> Path:
    """Draw people with one template in a gallery and two as probes, each of a photo and two frames of a video.

    Odd subjects are in the first gallery, even ones in the second.
    """
    faces, points, pairs = [], [], []
    protocols = {f"gallery_{gallery}1": [HEADER], f"gallery_{gallery}2": [HEADER], "probe_mixed": [HEADER]}
    templates = [(template, 1 + (template - 1) // 3) for template in range(1, 3 * num_subjects + 1)]
    for template, subject in templates:
        protocol = f"gallery_{gallery}{2 - subject % 2}" if template % 3 == 1 else "probe_mixed"
        for number, media in enumerate((1000 + template, 2000 + template, 2000 + template)):
            image = f"{len(faces) + 1}.jpg"
            save(photo(subject, subject, 10 * template + number), root / "loose_crop" / image)
            faces.append(f"{image} {template} {media}\n")
            # The last point is outside of the image, as happens.
            points.append(f"{image} 26.060 32.026 47.785 30.323 36.851 37.656 22.162 49.875 46.45 -0.648 0.9{number}\n")
            protocols[protocol].append(f"{template},{subject},img/{media}.jpg,{media},47,84,63,97,,1\n")
        pairs += [f"{template} {other} {int(subject == who)}\n" for other, who in templates if other > template]
    (root / "meta").mkdir(exist_ok=True)
    for name, lines in (("face_tid_mid", faces), ("name_5pts_score", points), ("template_pair_label", pairs)):
        (root / "meta" / f"{benchmark}_{name}.txt").write_text("".join(lines))
    for name, lines in protocols.items():
        (root / "meta" / f"{benchmark}_1N_{name}.csv").write_text("".join(lines))
    return root


def make_ijbb(root: Path, *, num_subjects: int = 4) -> Path:
    """:func:`make_ijbc`, in the names of IJB-B."""
    return make_ijbc(root, num_subjects=num_subjects, benchmark="ijbb", gallery="S")
