"Meshes, clouds and pictures of strangers: read as what they are, or refused with a reason."
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cad_mllm.cad import CADProgram, rectangle
from cad_mllm.geometry import build_solid, cloud_of, in_metres, read_cloud, surface_distance
from cad_mllm.data import prepare_image
from cad_mllm.geometry import GeometryError, Mesh
from cad_mllm.geometry import read_mesh, read_shape, read_surface
from cad_mllm.metrics import score

CASES = Path(os.environ.get("CAD_CASES_ROOT", "nowhere"))
with_cases = pytest.mark.skipif(not CASES.is_dir(), reason="set CAD_CASES_ROOT to the folder of cases")
CHANNEL = [(0, 0), (50, 0), (50, 30), (40, 30), (40, 10), (10, 10), (10, 30), (0, 30)]
TETRA = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], float), np.array(
    [(0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2)]
)


def channel_obj():
    "A prism over a concave polygon, all of it polygons."
    ring = range(1, 9)
    v = [f"v {x} {y} {z}" for z in (0, 2.5) for x, y in CHANNEL]
    f = ["f " + " ".join(map(str, reversed(ring))), "f " + " ".join(str(i + 8) for i in ring)]
    return "\n".join(v + f + [f"f {i} {i % 8 + 1} {i % 8 + 9} {i + 8}" for i in ring])


def test_concave_polygons_are_cut_as_they_are(tmp_path):
    (tmp_path/"c.obj").write_text(channel_obj())
    mesh = read_mesh(tmp_path/"c.obj")
    assert np.isclose(mesh.volume, 900*2.5) and mesh.is_watertight
    x, y = mesh.points(4000)[:, :2].T
    assert not ((x > 10.01) & (x < 39.99) & (y > 10.01)).any()
    body = (
        "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\nelement face "
        "1\nproperty list uchar int vertex_indices\nend_header\n"
    )
    (tmp_path/"c.ply").write_text(body + "".join(f"{x} {y} 0\n" for x, y in CHANNEL) + "8 0 1 2 3 4 5 6 7\n")
    assert np.isclose(read_mesh(tmp_path/"c.ply").area, 900)


def stl_text(vertices, faces):
    corners = "".join(
        "FACET NORMAL 0 0 0\nOUTER LOOP\n" + "".join(
            "VERTEX {} {} {}\n".format(*vertices[i]) for i in f
        ) + "ENDLOOP\nENDFACET\n"
        for f in faces
    )
    return f"SOLID X\n{corners}ENDSOLID X\n"


def test_stl_in_capitals_and_binary_that_begins_with_solid(tmp_path):
    (tmp_path/"a.stl").write_text(stl_text(*TETRA))
    assert np.isclose(read_mesh(tmp_path/"a.stl").volume, 1/6)
    Mesh(*TETRA).export(tmp_path/"b.stl")
    data = (tmp_path/"b.stl").read_bytes()
    (tmp_path/"b.stl").write_bytes(b"solid facet".ljust(80) + data[80:])
    assert np.isclose(read_mesh(tmp_path/"b.stl", "mm").volume, 1/6)


def test_faces_given_twice_and_unwelded_are_one_body(tmp_path):
    v, f = TETRA
    def obj(faces):
        return "".join("v {} {} {} .1 .2 .3 # corner\n".format(*v[i]) for t in faces for i in t) + "".join(
            f"f {3*k + 1} \\\n{3*k + 2} {3*k + 3} # face\n" for k in range(len(faces))
        )
    for faces in (f, np.concatenate([f, f]), np.concatenate([f, f[:, ::-1]])):
        (tmp_path/"t.obj").write_text(obj(faces))
        mesh = read_mesh(tmp_path/"t.obj")
        assert (
            (len(mesh.vertices), len(mesh.faces), mesh.is_watertight) == (4, 4, True) and np.isclose(mesh.volume, 1/6)
        )


def test_off_and_gltf_come_along(tmp_path):
    v, f = TETRA
    (tmp_path/"t.off").write_text(
        "OFF\n4 4 0\n" + "".join("{} {} {}\n".format(*p) for p in v) + "".join("3 {} {} {}\n".format(*t) for t in f)
    )
    assert np.isclose(read_mesh(tmp_path/"t.off").volume, 1/6)
    trimesh = pytest.importorskip("trimesh")
    files = trimesh.exchange.gltf.export_gltf(trimesh.Scene(trimesh.Trimesh(v, f)))
    for name, data in files.items(): (tmp_path/name).write_bytes(data)
    assert np.isclose(read_mesh(tmp_path/"model.gltf").volume, 1/6)
    text = (tmp_path/"model.gltf").read_text()
    (tmp_path/"bad.gltf").write_text(text.replace('"uri":"', '"uri":"../'))
    with pytest.raises(GeometryError, match="not beside it"): read_mesh(tmp_path/"bad.gltf")


@with_cases
def test_small_files_that_hung_are_refused():
    for name, why in (("expo.glb", "no tree"), ("zero.ply", "without a property")):
        with pytest.raises(GeometryError, match=why): read_mesh(CASES/"readers"/name)


@with_cases
def test_cases_of_meshes_and_clouds():
    files = CASES/"files"
    assert np.isclose(read_mesh(next(files.glob("02*/*.obj")), "mm").area, 1550e-6)
    rgb = read_cloud(next(files.glob("01*/*.xyz")))
    assert rgb.points.shape[1] == 3 and rgb.notes
    for name in ("comma.xyz", "header_words.xyz", "intensity.xyz", "points.pts"):
        assert read_cloud(next(files.glob(f"09*/{name}"))).points.shape == (500, 3), name
    for name in ("empty.ply", "empty_header.ply"):
        with pytest.raises(GeometryError, match="no points"): read_cloud(next(files.glob(f"09*/{name}")))
    assert (
        np.isclose(read_mesh(next(files.glob("09*/unwelded_box.ply"))).volume, 1)
        and read_mesh(next(files.glob("09*/trailing*"))).is_watertight
    )
    mesh, notes = read_surface(next(files.glob("10*/*.obj")))
    cloud = in_metres(read_cloud(next(files.glob("10*/*.xyz"))))
    assert (
        notes and cloud.notes
        and np.isclose(np.ptp(mesh.vertices, axis=0).max(), np.ptp(cloud.points[:, :3], axis=0).max(), rtol=.05)
    )


def test_normals_are_known_by_their_length():
    rng = np.random.default_rng(0)
    points, normals = rng.random((60, 3)), rng.normal(size=(60, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    def text(*columns): return "\n".join(" ".join(map(str, row)) for row in np.concatenate(columns, 1)).encode()
    assert cloud_of(text(points, 255*rng.random((60, 3)))).points.shape == (60, 3)
    assert np.allclose(cloud_of(text(points, normals)).points[:, 3:], normals)
    assert np.allclose(cloud_of(text(points, 255*rng.random((60, 3)), normals)).points[:, 3:], normals)
    stream = io.BytesIO()
    np.savez(stream, normals=normals, pc=points)
    assert np.allclose(cloud_of(stream.getvalue()).points, np.concatenate([points, normals], 1))
    head = "ply\nformat ascii 1.0\nelement vertex 60\n" + "".join(
        f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz")
    ) + "end_header\n"
    assert np.allclose(cloud_of(head.encode() + text(points, normals)).points[:, 3:], normals)


def test_archive_that_unpacks_to_gigabytes_is_refused(monkeypatch):
    import cad_mllm.geometry.clouds as clouds
    monkeypatch.setattr(clouds, "MOST_CLOUD_BYTES", 10**6)
    stream = io.BytesIO()
    np.savez_compressed(stream, points=np.zeros((100_000, 3)))
    assert len(stream.getvalue()) < 10**4
    with pytest.raises(ValueError, match="claims 2 MB, more than"): cloud_of(stream.getvalue())
    liar = stream.getvalue().replace(b"(100000, 3)", b"(900000, 9)")
    with pytest.raises(ValueError): cloud_of(liar)


def test_one_stray_point_does_not_set_the_box():
    cloud = np.random.default_rng(0).random((500, 3))*.1
    from cad_mllm.geometry import Cloud
    found = in_metres(Cloud(np.concatenate([cloud, [[100, 0, 0]]])))
    assert np.array_equal(found.points, cloud) and "1 of 501 points lie far" in found.notes[0]
    assert in_metres(Cloud(cloud)).notes == []


def test_pictures_of_sixteen_bits_floats_turned_and_huge(tmp_path):
    ramp = np.linspace(0, 1, 64)[None].repeat(64, 0)
    Image.fromarray((ramp*65535).astype(np.uint16)).save(tmp_path/"grey.png")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path/"float.tiff")
    for name in ("grey.png", "float.tiff"):
        seen = prepare_image(tmp_path/name, 64)[0, :, 0].astype(int)
        assert seen[0] < 8 and seen[-1] > 247 and 110 < seen[32] < 145, name
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("black", (0, 0, 20, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path/"turned.jpg", exif=exif)
    seen = prepare_image(tmp_path/"turned.jpg", 20)
    assert seen[2].mean() < 60 and seen[-3].mean() > 200
    huge = io.BytesIO()
    Image.new("1", (8400, 8400)).save(huge, format="png")
    with pytest.raises(ValueError, match="give one of at most 64 million"): prepare_image(huge.getvalue(), 8)


def test_score_tells_of_another_size(tmp_path):
    from cad_mllm.metrics import score
    v, f = TETRA
    for name, size in (("gt", 1.), ("pred", 1/200)):
        (tmp_path/name).mkdir()
        Mesh(v*size, f).export(tmp_path/name/"a.ply")
    found = score(tmp_path/"pred", tmp_path/"gt", tmp_path/"out", jobs=0, num_points=100, draw=False)
    assert any("1/200 of its size" in n and "--align box" in n for n in found.notes), found.notes


def millimetre_data_set(root):
    "Two parts, 20 and 40 mm long, with clouds in millimetres: a PLY with normals and a table without; and the solids."
    solids = []
    for i, side in enumerate((.02, .04)):
        part = CADProgram()
        part.sketch(rectangle(0, 0, side, side/2))
        part.extrude(side/4)
        part.save(root/"json"/"0000"/f"p{i}.json")
        solids.append(build_solid(part, kernel="manifold"))
    (root/"pointcloud"/"0000").mkdir(parents=True)
    rows = solids[0].points(500) * ([1000]*3 + [1]*3)
    lines = "\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows)
    names = "".join(f"property float {n}\n" for n in ("x", "y", "z", "nx", "ny", "nz"))
    (root/"pointcloud"/"0000"/"p0.ply").write_text(
        f"ply\nformat ascii 1.0\nelement vertex 500\n{names}end_header\n{lines}\n"
    )
    np.savetxt(root/"pointcloud"/"0000"/"p1.xyz", solids[1].points(500)[:, :3]*1000)
    return solids


def test_unit_of_prepare_takes_clouds_over_in_metres(tmp_path):
    """Clouds in millimetres become metres in OUT, with their normals and no others; without --unit they are made
    from the histories; ROOT stays."""
    from cad_mllm.data.points import read_points
    solids = millimetre_data_set(tmp_path/"given")
    before = {p: p.read_bytes() for p in (tmp_path/"given").rglob("*.*") if p.is_file()}
    flags = ["--no-images", "--no-captions", "--jobs", "1", "--num_points", "400"]
    def run(*more):
        return subprocess.run(
            [sys.executable, "-m", "cad_mllm", "prepare", str(tmp_path/"given"), *more, *flags], capture_output=True,
            text=True
        )
    assert run("--out", str(tmp_path/"out"), "--unit", "mm").returncode == 0
    for i, width in enumerate((6, 3)):
        cloud = read_points(tmp_path/"out"/"pointcloud"/"0000"/f"p{i}.npz")
        assert cloud.shape == (400, width)
        assert np.ptp(cloud[:, 0]) == pytest.approx((.02, .04)[i], rel=.02)
        assert surface_distance(cloud, solids[i].mesh()).max() < 1e-5
    assert {p: p.read_bytes() for p in (tmp_path/"given").rglob("*.*") if p.is_file()} == before
    for more, words in (
        (("--unit", "mm"), "name another folder"),
        (("--out", str(tmp_path/"o2"), "--unit", "feet"), "choose one of mm, cm, m, in")
    ):
        refused = run(*more)
        assert refused.returncode and words in refused.stderr and "Traceback" not in refused.stderr


def test_unit_of_score_and_of_points_for_complete(tmp_path):
    "A mesh and a cloud without a unit of their own are taken in the one that is named; another word is refused."
    from cad_mllm.completion_requests import InputError, read_given_points
    v, f = TETRA
    for name, scale in (("gt", .02), ("pred", 20.)):          # metres, and the same in millimetres
        (tmp_path/name).mkdir()
        lines = [f"v {x} {y} {z}" for x, y, z in (v*scale).tolist()] + [
            f"f {a} {b} {c}" for a, b, c in (f + 1).tolist()
        ]
        (tmp_path/name/"a.obj").write_text("\n".join(lines))
        np.save(tmp_path/name/"cloud.npy", np.repeat(v*scale, 20, axis=0).astype("f4"))
    found = score(
        tmp_path/"pred", tmp_path/"gt", tmp_path/"out", pred_unit="mm", gt_unit="m", jobs=0, num_points=100, draw=False
    )
    assert not any("of its size" in note for note in found.notes), found.notes
    sizes = [np.ptp(read_given_points(tmp_path/name/"cloud.npy", unit=unit).points[:, :3], axis=0).max()
             for name, unit in (("pred", "mm"), ("gt", "m"), ("pred", "cm"))]
    assert sizes == pytest.approx([np.ptp(v, axis=0).max()*s for s in (.02, .02, .2)], rel=1e-5)
    with pytest.raises(InputError, match="choose one of mm"): read_given_points(tmp_path/"pred"/"cloud.npy", unit="ell")


def test_unit_of_inspect(tmp_path, capsys):
    "A cloud and a mesh are told in millimetres, in the unit that was named or guessed; a history in JSON has its own."
    from cad_mllm.commands.files import inspect
    from cad_mllm.config import ConfigError
    millimetre_data_set(tmp_path)
    cloud = tmp_path/"pointcloud"/"0000"/"p0.ply"
    inspect(str(cloud), unit="mm")
    assert "500 points with normals, 20 x 1" in capsys.readouterr().out
    inspect(str(cloud), unit="cm")
    assert "500 points with normals, 200 x 1" in capsys.readouterr().out
    inspect(str(cloud))
    assert "taken as millimetres" in capsys.readouterr().out
    build_solid(CADProgram.from_json(tmp_path/"json"/"0000"/"p1.json"), kernel="manifold").export(tmp_path/"a.stl")
    inspect(str(tmp_path/"a.stl"))
    assert "12 triangles, closed, 8000 mm³, 40 x 20 x 10 mm" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="says its own unit"):
        inspect(str(tmp_path/"json"/"0000"/"p1.json"), unit="mm")
    with pytest.raises(ConfigError, match="choose one of mm"): inspect(str(cloud), unit="ell")


def write_3mf(path, unit):
    "A tetrahedron with legs of 20 units."
    corners, faces = [(0, 0, 0), (20, 0, 0), (0, 20, 0), (0, 0, 20)], [(0, 2, 1), (0, 1, 3), (1, 2, 3), (0, 3, 2)]
    vertices = "".join(f'<vertex x="{x}" y="{y}" z="{z}"/>' for x, y, z in corners)
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in faces)
    model = (
        f'<?xml version="1.0"?><model {unit} '
        'xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"><resources><object id="1" type="model">'
        f'<mesh><vertices>{vertices}</vertices><triangles>{triangles}</triangles></mesh></object></resources>'
        '<build><item objectid="1"/></build></model>'
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("3D/3dmodel.model", model)
        archive.writestr("[Content_Types].xml", "<Types/>")
    return path


@pytest.mark.parametrize(
    "unit, metres",
    [
        ("", 1e-3), ('unit="millimeter"', 1e-3), ('unit="centimeter"', 1e-2), ('unit="inch"', .0254),
        ('unit="foot"', .3048)
    ]
)
def test_3mf_in_its_own_unit(tmp_path, unit, metres):
    pytest.importorskip("lxml", reason="pip install lxml")
    mesh = read_surface(write_3mf(tmp_path/"a.3mf", unit))[0]
    assert mesh.is_watertight and mesh.volume == pytest.approx((20*metres)**3/6)
    assert read_surface(tmp_path/"a.3mf", "m")[0].volume == pytest.approx(20**3/6)


@pytest.mark.parametrize("name", ["lxml", "networkx"])
def test_3mf_without_what_trimesh_needs_is_one_sentence(tmp_path, monkeypatch, name):
    for other in ("lxml", "networkx"): monkeypatch.setitem(sys.modules, other, ModuleType(other))
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GeometryError, match=rf"a\.3mf: \.3mf needs the package {name}: pip install {name}$"):
        read_surface(write_3mf(tmp_path/"a.3mf", ""))


def test_3mf_that_unpacks_to_gigabytes_or_defines_words_is_refused(tmp_path, monkeypatch):
    "Looked at before trimesh and lxml are."
    path = write_3mf(tmp_path/"a.3mf", "")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("3D/more.xml", '<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>')
    with pytest.raises(GeometryError, match="defines entities"): read_surface(path)
    monkeypatch.setattr("cad_mllm.geometry.mesh_readers.MOST_UNPACKED", 100)
    with pytest.raises(GeometryError, match="unpacks to"): read_surface(path)


def plate():
    "A plate of 20 by 10 by 10 mm."
    part = CADProgram()
    part.sketch(rectangle(0, 0, .02, .01))
    part.extrude(.01)
    return part


def test_a_byte_order_mark_in_step_and_captions_is_read(tmp_path):
    from cad_mllm.data.captions import read_captions
    from cad_mllm.data.skipped import SkipReport
    build_solid(plate()).export(tmp_path/"plain.step")
    text = (tmp_path/"plain.step").read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path/"a.step").write_bytes(text.encode(encoding))
        assert read_shape(tmp_path/"a.step").volume == pytest.approx(2e-6)
        (tmp_path/"a.json").write_bytes('[{"id": "0000/a", "text caption": "Ø 12"}]'.encode(encoding))
        assert read_captions(tmp_path/"a.json", SkipReport()) == {"0000/a": "Ø 12"}
    (tmp_path/"a.step").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GeometryError, match="a.step: not a STEP file"): read_shape(tmp_path/"a.step")


def test_reasons_of_score_are_sentences_with_the_file(tmp_path):
    "No raw KeyError: what is missing, and in which prediction."
    for folder in ("gt", "pred"): (tmp_path/folder).mkdir()
    for name in "abc": plate().save(tmp_path/"gt"/f"{name}.json")
    (tmp_path/"pred"/"a.json").write_text(
        '{"entities": {"A": {"type": "Sketch"}}, "sequence": [{"index": 0, "type": "Sketch", "entity": "A"}]}'
    )
    (tmp_path/"pred"/"b.json").write_text("{}")
    plate().save(tmp_path/"pred"/"c.json")
    report = score(str(tmp_path/"pred"), str(tmp_path/"gt"), jobs=1, out=str(tmp_path/"out"))
    reasons = json.loads((tmp_path/"out"/"scores.json").read_text())
    reasons = next(v for v in reasons.values() if isinstance(v, dict) and "a" in v)
    assert reasons == {"a": "entities.A.profiles: is missing", "b": "top level.entities: is missing"}
    assert all(words in str(report) for words in reasons.values()) and "KeyError" not in str(report)


def damaged(rng, data, kind):
    "Bytes of a STEP file after one kind of damage."
    lines, at = data.splitlines(keepends=True), rng.integers(len(data))
    if kind == "flipped":
        spoilt = bytearray(data)
        for i in rng.integers(len(data), size=8): spoilt[i] ^= 1 << rng.integers(8)
        return bytes(spoilt)
    if kind == "header flipped": return damaged(rng, data[:400], "flipped") + data[400:]
    if kind == "cut": return data[:at]
    if kind == "repeated": return b"".join(line*(1 + 3*(rng.random() < .2)) for line in lines)
    if kind == "zeros": return data[:at] + bytes(20) + data[at:]
    return data.decode().encode("utf-16")[:-at]


def test_fuzzed_step_files(tmp_path):
    """Seeded damage to the text of a STEP file: a shape or a `GeometryError` with the file. CAD_FUZZ_CASES sets how
    many cases."""
    build_solid(plate()).export(tmp_path/"plain.step")
    data, rng, file = (tmp_path/"plain.step").read_bytes(), np.random.default_rng(0), tmp_path/"a.step"
    kinds = ("flipped", "header flipped", "cut", "repeated", "zeros", "utf-16")
    for case in range(int(os.environ.get("CAD_FUZZ_CASES", "12"))):
        file.write_bytes(damaged(rng, data, kinds[case % len(kinds)]))
        try: solid = read_shape(file)
        except GeometryError as error:
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error), (case, error)
            continue
        assert len(solid.mesh().faces), case
