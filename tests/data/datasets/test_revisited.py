import pickle
from collections import OrderedDict

import pytest
import torch

from dml.data.datasets import RevisitedOxford, RevisitedParis
from tests.data.datasets.miniatures import make_revisited_oxford, make_revisited_paris

BOTH = pytest.mark.parametrize(
    ("dataset", "make", "folder"),
    [
        (RevisitedOxford, make_revisited_oxford, "roxford5k"),
        (RevisitedParis, make_revisited_paris, "rparis6k"),
    ],
)


@pytest.fixture
def root(tmp_path):
    return make_revisited_oxford(tmp_path / "revisitop")


def rewrite(root, change):
    file = root / "roxford5k" / "gnd_roxford5k.pkl"
    truth = pickle.loads(file.read_bytes())
    file.write_bytes(pickle.dumps(change(truth) or truth))
    return file


@BOTH
def test_gallery_and_cropped_queries_are_the_test(dataset, make, folder, tmp_path):
    test = dataset(make(tmp_path), "test")
    gallery = 6 if folder == "roxford5k" else 5
    assert test.index["role"].tolist() == ["query"] * 2 + ["gallery"] * gallery
    assert test.index["path"].str.match(rf"^{folder}/jpg/\w+\.jpg$").all()
    assert test.box(0) == pytest.approx((16.5, 8.1, 64.5, 48.7))
    assert test[0]["image"].shape == (3, 41, 48)
    assert test[1]["image"].shape == (3, 32, 40)
    for row in range(2, 2 + gallery):
        assert test.box(row) is None
        assert test[row]["image"].shape == (3, 64, 80)
    assert (test[0]["is_query"], test[0]["is_gallery"]) == (True, False)
    assert (test[2]["is_query"], test[2]["is_gallery"]) == (False, True)


def test_label_is_the_first_part_of_the_name(root):
    test = RevisitedOxford(root, "test")
    assert test.labels[:, 0].tolist() == [0, 3, 0, 0, 2, 3, 4, 1]  # in sorted order, jesus before oxford
    assert len(test.labels.unique()) == 5


@BOTH
def test_judgements_name_rows_of_the_index(dataset, make, folder, tmp_path):
    test = dataset(make(tmp_path), "test")
    judged = test.judgements()
    assert list(judged.itertuples(index=False, name=None)) == [
        (0, 2, "easy"),
        (0, 3, "hard"),
        (0, 4, "hard"),
        (0, 5, "junk"),
        (1, 5, "hard"),
    ]


def test_oxford_and_paris_share_a_root(root):
    make_revisited_paris(root)
    assert len(RevisitedOxford(root, "test")) == 8
    assert len(RevisitedParis(root, "test")) == 7


def test_distractors_enlarge_the_gallery_of_a_split_of_their_own(tmp_path):
    root = make_revisited_oxford(tmp_path, num_distractors=3)
    plain, large = RevisitedOxford(root, "test"), RevisitedOxford(root, "test_with_distractors")
    assert len(plain) == 8
    assert large.index["path"][:8].equals(plain.index["path"])
    assert large.index["path"][8:].tolist() == [f"revisitop1m/jpg/{n:02}/distractor_{n}.jpg" for n in range(3)]
    assert large.index["role"][8:].eq("gallery").all()
    assert not torch.isin(large.labels[8:], large.labels[:8]).any()
    assert large.box(0) == plain.box(0)
    assert large.box(8) is None
    assert large[10]["image"].shape == (3, 64, 80)
    assert large.judgements().equals(plain.judgements())


def test_without_distractors_there_is_no_such_split(root):
    with pytest.raises(ValueError, match=r"has splits \['test'\], not 'test_with_distractors'"):
        RevisitedOxford(root, "test_with_distractors")


def test_distractors_may_come_later_and_have_lines_that_end_as_on_windows(root):
    RevisitedOxford(root, "test")
    make_revisited_oxford(root, num_distractors=3)
    file = root / "revisitop1m" / "revisitop1m.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert RevisitedOxford(root, "test_with_distractors").index["path"].str[-4:].eq(".jpg").all()


@pytest.mark.parametrize("row", ["a b.jpg", ""])
def test_malformed_row_of_the_distractors_is_named(tmp_path, row):
    root = make_revisited_oxford(tmp_path, num_distractors=3)
    file = root / "revisitop1m" / "revisitop1m.txt"
    file.write_text(f"a.jpg\n{row}\nc.jpg\n")
    with pytest.raises(ValueError, match="is not written") as error:
        RevisitedOxford(root, "test")
    assert str(error.value) == f"{file}, line 2: {row!r} is not written 'name.jpg'"


@BOTH
def test_root_one_folder_too_low_or_too_high(dataset, make, folder, tmp_path):
    root = make(tmp_path / "data")
    for wrong in (root / folder, root.parent):
        with pytest.raises(FileNotFoundError) as error:
            dataset(wrong, "test")
        assert f"those are in {str(root)!r}: point root there" in str(error.value)


def test_missing_truth_is_named_with_its_origin(root):
    (root / "roxford5k" / "gnd_roxford5k.pkl").unlink()
    with pytest.raises(FileNotFoundError) as error:
        RevisitedOxford(root, "test")
    assert str(error.value) == (
        f"root is {str(root)!r}, which must be a folder with roxford5k/gnd_roxford5k.pkl and roxford5k/jpg, but it "
        "lacks roxford5k/gnd_roxford5k.pkl: it holds ['roxford5k']; the data can be had from "
        "https://github.com/filipradenovic/revisitop"
    )


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Evil()), "it asks for builtins.print"),
        (pickle.dumps(OrderedDict(imlist=[])), "it asks for collections.OrderedDict"),
        (pickle.dumps({"imlist": []})[:-4], ""),
        (b"", "Ran out of input"),
        (b"<html>404</html>", ""),
    ],
)
def test_pickle_of_anything_but_plain_values_is_refused(root, content, reason, capsys):
    file = root / "roxford5k" / "gnd_roxford5k.pkl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is not a pickle of plain") as error:
        RevisitedOxford(root, "test")
    assert str(error.value).startswith(
        f"{file} is not a pickle of plain lists, dicts, strings and numbers: {reason}",
    )
    assert "executed" not in capsys.readouterr().out


def _set(key, value):
    def change(truth):
        truth["gnd"][1][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda truth: truth["imlist"], "{file} must hold a dict with lists imlist and qimlist"),
        (lambda truth: {**truth, "imlist": None}, "{file} must hold a dict with lists imlist and qimlist"),
        (lambda truth: {**truth, "qimlist": [1, 2]}, "{file} must hold a dict with lists imlist and qimlist"),
        (lambda truth: {"imlist": [], "qimlist": []}, "{file} must hold a dict with lists imlist and qimlist"),
        (lambda truth: {**truth, "gnd": [[], []]}, "{file} must hold a dict with lists imlist and qimlist"),
        (lambda truth: {**truth, "qimlist": ["a_1"]}, "{file} holds 1 queries in qimlist, but 2 in gnd"),
        (_set("bbx", [1, 2, 3]), "{file}: gnd[1]['bbx'] is [1, 2, 3]; it must be four numbers"),
        (_set("bbx", None), "{file}: gnd[1]['bbx'] is None; it must be four numbers"),
        (_set("bbx", [0, 0, 1, float("nan")]), "{file}: gnd[1]['bbx'] is [0, 0, 1, nan]; it must be four numbers"),
        (_set("bbx", [0, 0, 1, "2"]), "{file}: gnd[1]['bbx'] is [0, 0, 1, '2']; it must be four numbers"),
        (_set("easy", [6]), "{file}: gnd[1]['easy'] must be a list of places in imlist, 0 to 5; it is [6]"),
        (_set("hard", [-1]), "{file}: gnd[1]['hard'] must be a list of places in imlist, 0 to 5; it is [-1]"),
        (_set("junk", [1.5]), "{file}: gnd[1]['junk'] must be a list of places in imlist, 0 to 5; it is [1.5]"),
        (_set("junk", None), "{file}: gnd[1]['junk'] must be a list of places in imlist, 0 to 5; it is None"),
    ],
)
def test_truth_of_another_form_is_refused(root, change, reason):
    file = rewrite(root, change)
    with pytest.raises(ValueError, match=r"gnd_roxford5k\.pkl") as error:
        RevisitedOxford(root, "test")
    assert str(error.value).startswith(reason.format(file=file))


@pytest.mark.parametrize(
    ("dataset", "folder", "num_gallery", "num_landmarks", "num_judged"),
    [
        (RevisitedOxford, "roxford5k", 4993, 17, {"easy": 3029, "hard": 2497, "junk": 1356}),
        (RevisitedParis, "rparis6k", 6322, 12, {"easy": 6874, "hard": 10350, "junk": 7153}),
    ],
)
def test_real_truth(dataset, folder, num_gallery, num_landmarks, num_judged, real_data, tmp_path):
    (tmp_path / folder / "jpg").mkdir(parents=True)
    file = real_data / "revisitop" / f"gnd_{folder}.pkl"
    (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    test = dataset(tmp_path, "test")
    assert dataset.published["test"] == (len(test), None)
    assert test.index["role"].value_counts().to_dict() == {"gallery": num_gallery, "query": 70, "both": 0}
    assert len(test.labels.unique()) == num_landmarks
    assert sum(test.box(row) is not None for row in range(len(test))) == 70
    judged = test.judgements()
    assert judged["judgement"].value_counts().to_dict() == num_judged
    assert not judged.duplicated(["query", "item"]).any()
    assert judged["query"].nunique() == 70
    assert (test.index["role"][judged["query"]] == "query").all()
    assert (test.index["role"][judged["item"]] == "gallery").all()
    with file.open("rb") as stream:
        truth = pickle.load(stream)
    for query in (0, 69):
        row = test.index["path"].eq(f"{folder}/jpg/{truth['qimlist'][query]}.jpg").argmax()
        easy = judged[(judged["query"] == row) & (judged["judgement"] == "easy")]["item"]
        names = test.index["path"][easy].str.extract(r"/jpg/(.+)\.jpg$")[0].tolist()
        assert names == [truth["imlist"][item] for item in truth["gnd"][query]["easy"]]
        assert test.box(row) == pytest.approx(truth["gnd"][query]["bbx"], rel=1e-6)
