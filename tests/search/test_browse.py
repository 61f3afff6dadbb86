"""``dml browse``: the page, and what it refuses."""

import asyncio
import http.client
import io
import json
import shutil
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pandas as pd
import pytest
import uvicorn
from PIL import Image

from dml.__main__ import OneLineErrors
from dml.search import SearchIndex
from dml.search.app import make_app, worst_queries
from dml.search.browse_command import _is_loopback
from dml.search.embedder import read_embedder
from dml.search.uploads import RefusedUploadError, decode_upload, read_limited
from tests.search.conftest import draw, error_of

LIMIT = 200_000


@pytest.fixture(scope="module")
def per_query(built, tmp_path_factory):
    """A file of three queries, one of which the index does not know."""
    rows = [
        {"path": "hat/2.png", "AP": 0.75, "first_wrong_path": "cup/3.png", "first_wrong_score": 0.5},
        {"path": "cup/0.png", "AP": 0.25, "first_wrong_path": "shoe/4.png", "first_wrong_score": 0.875},
        {"path": "gone.png", "AP": 0.0, "first_wrong_path": None, "first_wrong_score": None},
        {"path": "shoe/2.png", "AP": 1.0, "first_wrong_path": None, "first_wrong_score": None},
    ]
    file = tmp_path_factory.mktemp("per_query") / "per_query.parquet"
    pd.DataFrame(rows).to_parquet(file)
    return file


@pytest.fixture(scope="module")
def address(built, checkpoint, per_query):
    """Of a page that is served as ``dml browse`` serves it."""
    index = SearchIndex(built)
    embedder = read_embedder(str(checkpoint), [], OneLineErrors)
    hosts = ("127.0.0.1", "localhost")
    app = make_app(index, embedder, worst=worst_queries(index, per_query), max_upload_bytes=LIMIT, hosts=hosts)
    yield from serve(app)


def serve(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def ask(address, path, method="GET", body=None, **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection(address, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(
        method, path, body=body, headers=named, encode_chunked=named.get("Transfer-Encoding") is not None
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def search(address, content, **headers):
    status, _, body = ask(address, "/search?k=5", "POST", content, **headers)
    return status, json.loads(body)


def stored(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_an_upload_finds_what_search_finds(address, index, checkpoint):
    embedder = read_embedder(str(checkpoint), [], OneLineErrors)
    image = draw("hat", 77)
    status, answer = search(address, stored(image))
    assert status == 200
    pixels = decode_upload(stored(image), 3)
    scores, rows = index.search(embedder.embed(pixels), 5)
    assert [item["row"] for item in answer["neighbours"]] == rows[0].tolist()
    np.testing.assert_allclose([item["score"] for item in answer["neighbours"]], scores[0], atol=1e-5)
    first = answer["neighbours"][0]
    assert first["path"] == index.images["path"][first["row"]]
    assert first["labels"] == index.labels(first["row"])
    assert {item["is_right"] for item in answer["neighbours"]} == {None}
    assert answer["query"]["image"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats(kind, address, shop):
    with Image.open(shop / "cup" / "3.png") as image:
        status, answer = search(address, stored(image, kind))
    assert status == 200
    if kind in ("PNG", "BMP", "TIFF"):  # without loss
        assert answer["neighbours"][0]["path"] == "cup/3.png"
        assert answer["neighbours"][0]["score"] == pytest.approx(1.0, abs=1e-4)


def test_neighbours_of_an_image_of_the_index(address, index):
    row = index.row("hat/0.png")  # a query only
    status, _, body = ask(address, f"/neighbours/{row}?k=3")
    answer = json.loads(body)
    scores, rows = index.neighbours(row, 3)
    assert status == 200
    assert [item["row"] for item in answer["neighbours"]] == rows.tolist()
    assert [item["score"] for item in answer["neighbours"]] == pytest.approx(scores.tolist())
    right = [item["labels"]["product"] == "hat" for item in answer["neighbours"]]
    assert [item["is_right"] for item in answer["neighbours"]] == right
    assert answer["query"] == {
        "row": row,
        "path": "hat/0.png",
        "labels": {"product": "hat", "kind": "worn"},
        "image": f"images/{row}",
    }
    assert len(json.loads(ask(address, "/neighbours/0?k=9999")[2])["neighbours"]) == 19
    assert len(json.loads(ask(address, "/neighbours/0?k=-1")[2])["neighbours"]) == 19


def test_images_are_made_anew(address, index, shop):
    status, headers, body = ask(address, "/images/5")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(body)) as shown, Image.open(index.file(5)) as original:
        assert shown.format == "JPEG"
        assert shown.size == original.size
        difference = np.abs(np.asarray(shown, int) - np.asarray(original.convert("RGB"), int))
    assert difference.mean() < 25  # noise does not survive JPEG, colours do


def test_worst_queries_come_first(address):
    queries = json.loads(ask(address, "/worst")[2])
    assert [(query["path"], query["AP"]) for query in queries] == [
        ("cup/0.png", 0.25),
        ("hat/2.png", 0.75),
        ("shoe/2.png", 1.0),
    ]
    assert (queries[0]["wrong"]["path"], queries[0]["wrong_score"]) == ("shoe/4.png", 0.875)
    assert (queries[2]["wrong"], queries[2]["wrong_score"]) == (None, None)


@pytest.mark.parametrize(
    "path",
    [
        "/images/../index.csv",
        "/images/%2e%2e/index.csv",
        "/images/cup/0.png",
        "/images/24",
        "/images/-1",
        "/images/99999999999999999999",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/..%2f..%2fmodule.py",
        "/page//etc/passwd",
        "/neighbours/24",
        "/etc/passwd",
    ],
)
def test_nothing_but_images_of_the_index(path, address):
    status, _, body = ask(address, path)
    assert status == 404
    assert b"import" not in body
    assert b"root:" not in body


def test_a_file_that_is_no_image_is_not_shown(checkpoint, shop, built, tmp_path):
    """Whatever the index names, pixels are all that leaves the machine."""
    copy = tmp_path / "shop"
    shutil.copytree(shop, copy)
    index = SearchIndex(built, root=copy)
    index.file(0).write_text("<script>alert(1)</script>")
    index.file(1).unlink()
    index.file(1).symlink_to("/etc/passwd")
    for address in serve(make_app(index, None)):
        for row in (0, 1):
            status, headers, body = ask(address, f"/images/{row}")
            assert (status, headers["content-type"]) == (404, "application/json")
            assert b"script" not in body
            assert b"root:" not in body
        assert ask(address, "/images/2")[0] == 200
        status, answer = search(address, stored(draw("cup", 1)))
        assert (status, "start dml browse with --ckpt_path" in answer["error"]) == (409, True)
        assert b"The index has no checkpoint" in ask(address, "/")[2]


def png_of_size(width, height):
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="file:///etc/passwd"/></svg>'


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 400, "the file is empty"),
        (b"hello", 400, "not a whole image"),
        (SVG, 400, "not a whole image"),
        (b"<html><script>alert(1)</script>", 400, "not a whole image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "not a whole image"),
        (stored(NOISE, "PPM"), 400, "not a whole image"),
        (stored(NOISE, "JPEG")[:2000], 400, "damaged or cut off"),
        (stored(NOISE, "PNG")[:2000], 400, "not a whole image"),
        (stored(NOISE, "WEBP")[:2000], 400, "image"),
        (png_of_size(60_000, 60_000), 413, "pixels"),
        (png_of_size(8000, 8000), 413, "8000 x 8000 pixels; at most 50,000,000"),
        (bytes(LIMIT + 1), 413, "larger than 0.190735 MiB"),
        (bytes(3 * LIMIT), 413, "larger than 0.190735 MiB"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value),
)
def test_uploads_that_are_refused(content, status, said, address):
    found, answer = search(address, content)
    assert (found, said in answer["error"]) == (status, True), answer
    assert search(address, stored(NOISE))[0] == 200  # and it goes on


def test_the_size_is_counted_not_believed(address):
    """A body in chunks has no length to believe."""
    chunks = (bytes(10_000) for _ in range(40))
    status, answer = search(address, chunks, Transfer_Encoding="chunked")
    assert (status, "larger than" in answer["error"]) == (413, True)
    content = stored(NOISE)
    chunks = (content[start : start + 1000] for start in range(0, len(content), 1000))
    assert search(address, chunks, Transfer_Encoding="chunked")[0] == 200


def test_no_more_than_the_limit_is_kept():
    read = 0

    async def endless():
        nonlocal read
        while True:
            read += 1000
            yield bytes(1000)

    with pytest.raises(RefusedUploadError, match="larger than") as error:
        asyncio.run(read_limited(endless(), 50_000))
    assert error.value.status == 413
    assert read <= 8 * 50_000 + 1000


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example:80", "[::1"])
def test_another_name_is_refused(host, address):
    """A site whose name is made to lead here (DNS rebinding) still says its own name."""
    for path in ("/", "/images/0", "/worst", "/page/page.js"):
        status, _, body = ask(address, path, Host=host)
        assert status == 400
        assert b"host is" in body or b"Invalid" in body
    assert ask(address, "/", Host="localhost:8000")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server of this machine
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({}, 200),  # a program, which no other site can make send this
    ],
)
def test_other_sites_cannot_send(headers, status, address):
    assert search(address, stored(NOISE), **headers)[0] == status


def test_the_page_itself_can_send(address):
    assert search(address, stored(NOISE), Origin=f"http://{address}")[0] == 200
    assert ask(address, "/search", "PUT")[0] == 405


def test_every_answer_has_a_policy(address):
    for path, host in (("/", None), ("/images/0", None), ("/page/page.js", None), ("/none", None), ("/", "evil")):
        _, headers, _ = ask(address, path, **({"Host": host} if host else {}))
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_takes_nothing_from_elsewhere(address):
    for path in ("/", "/page/page.css", "/page/page.js"):
        status, _, body = ask(address, path)
        assert status == 200
        assert b"http://" not in body
        assert b"https://" not in body
    for word in (b"innerHTML", b"eval(", b"outerHTML", b"insertAdjacentHTML"):
        assert word not in ask(address, "/page/page.js")[2]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("gpu7", False)],
)
def test_loopback(host, expected):
    assert _is_loopback(host) is expected


def test_a_bad_list_of_queries(index, tmp_path, built, capsys):
    pd.DataFrame({"path": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"lacks columns \['AP'\]"):
        worst_queries(index, tmp_path / "a.parquet")
    pd.DataFrame({"path": ["a"], "AP": [0.5]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="none of whose 1 queries is an image of the index"):
        worst_queries(index, tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_text("no")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        worst_queries(index, tmp_path / "c.parquet")
    browse = ("browse", "--index", built)
    assert "max_upload_mb is 0" in error_of(capsys, *browse, "--max_upload_mb", 0)
    assert "cannot be read as Parquet" in error_of(capsys, *browse, "--per_query", tmp_path / "none.parquet")
    assert "port is 99999" in error_of(capsys, *browse, "--port", 99999)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in error_of(capsys, *browse, "--port", taken.getsockname()[1])
