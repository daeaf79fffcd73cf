"The metrics against independent implementations: brute force, scipy, exact formulas, CGAL where it is installed."
import json
import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist, jensenshannon

from chapters import Chapter
metrics = Chapter("cad_mllm.metrics")
from cad_mllm.metrics import (
    chamfer, chamfer_cad_mllm, chamfer_deepcad, cov_mmd_jsd, fscore, iou, normal_consistency,
    relative_segment_error, repair, segment_error, Summary, topology)

CUBE = np.array(
    [
        t for a, b, c, d in ([0, 2, 1, 3], [0, 1, 4, 5], [1, 3, 5, 7], [3, 2, 7, 6], [2, 0, 6, 4], [4, 5, 6, 7])
        for t in ((a, b, c), (c, b, d))
    ]
)


def box(low=(0, 0, 0), size=(1, 1, 1), faces=CUBE):
    return np.array(
        [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    )*np.array(size, float) + np.array(low, float), np.asarray(faces)


def together(*meshes):
    starts = np.cumsum([0] + [len(v) for v, _ in meshes])
    return np.concatenate([v for v, _ in meshes]), np.concatenate([f + s for (_, f), s in zip(meshes, starts)])


def merged(mesh):
    v, inverse = np.unique(mesh[0], axis=0, return_inverse=True)
    return v, inverse.ravel()[mesh[1]]


def cloud(rng, num):
    n = rng.normal(size=(num, 3))
    return np.concatenate([rng.uniform(-.5, .5, (num, 3)), n/np.linalg.norm(n, axis=1, keepdims=True)], 1)


def test_the_table_of_the_field():
    "What every implementation must give on these meshes: pieces, dangling edge length, self-intersection ratio, flux."
    rows = {
        "unit cube": (box(), 1, 0, 0, 0),
        "open cube": (box(faces=CUBE[:-2]), 1, 8, 0, 1),
        "cube minus one triangle": (box(faces=CUBE[:-1]), 1, 4 + 2*2**.5, 0, .5),
        "two cubes overlapping": (together(box(), box((.5, .5, .5))), 2, 0, .5, 0),
        "nested cubes": (together(box(), box((.25, .25, .25), (.5, .5, .5))), 2, 0, 0, 0),
        "open tube": (box(faces=CUBE[2:-2]), 1, 16, 0, 0),
        "two separate boxes": (together(box(), box((3, 0, 0))), 2, 0, 0, 0),
        "empty": ((np.zeros((0, 3)), np.zeros((0, 3), int)), 0, 0, 0, 0)}
    for name, (mesh, *expected) in rows.items():
        found = topology(*mesh)
        assert list(found) == ["components", "dangel", "sir", "fluxee", "closed"]
        assert [found[k] for k in ("components", "dangel", "sir", "fluxee")] == pytest.approx(expected, abs=1e-9), name
        assert found["closed"] == (name not in ("open cube", "cube minus one triangle", "open tube", "empty")), name
    for shift in ((1, 1, 0), (1, 1, 1)):                     # sharing only an edge, only a vertex
        found = topology(*merged(together(box(), box(shift))))
        assert (
            (found["components"], found["dangel"], found["fluxee"], found["closed"]) == (2, 0, 0, True)
            and 0 < found["sir"] < 1
        )
    assert segment_error(3, 2) == 1 and relative_segment_error(3, 2) == .5


def test_a_mesh_means_the_same_however_it_is_written():
    """Faces in another order, corners rotated, windings turned, vertices doubled as in an STL file, moved and turned
    in space."""
    rng = np.random.default_rng(0)
    for v, f in (
        box(), box(faces=CUBE[:-2]), together(box(), box((.5, .5, .5))), together(box(), box((3, 0, 0), (1, 2, 1)))
    ):
        true = topology(v, f)
        g = np.stack([np.roll(t, rng.integers(3)) for t in rng.permutation(f)])
        turned = np.where(rng.random(len(g))[:, None] < .3, g[:, ::-1], g)
        for other in (
            (v, g), (v, turned), (v[f].reshape(-1, 3), np.arange(f.size).reshape(-1, 3)), (v*7 + 3, f),
            (v.tolist(), f.tolist())
        ):
            found = topology(*other)
            assert (found["components"], found["closed"]) == (true["components"], true["closed"])
            assert found["dangel"] == pytest.approx(true["dangel"]) and found["sir"] == pytest.approx(true["sir"])
        assert (
            topology(v, turned)["fluxee"] == pytest.approx(true["fluxee"])
            and topology(v*7, f)["fluxee"] == pytest.approx(49*true["fluxee"])
        )


def test_point_metrics_against_all_pairs():
    "Every distance computed, no tree."
    rng = np.random.default_rng(1)
    for num_a, num_b in ((1, 1), (50, 80), (200, 30)):
        a, b = cloud(rng, num_a), cloud(rng, num_b)
        d = cdist(a[:, :3], b[:, :3])
        one, two = d.min(1), d.min(0)
        assert (
            chamfer(a, b) == pytest.approx(one.mean() + two.mean())
            and chamfer(a, b, squared=True) == pytest.approx((one**2).mean() + (two**2).mean())
        )
        p, r = (one < .1).mean(), (two < .1).mean()
        assert fscore(a, b, .1) == pytest.approx(2*p*r/(p + r) if p + r else 0)
        cosines = np.abs(a[:, 3:] @ b[:, 3:].T)
        assert normal_consistency(a, b) == pytest.approx(
            (cosines[np.arange(num_a), d.argmin(1)].mean() + cosines[d.argmin(0), np.arange(num_b)].mean())/2
        )
        scale = .75/np.abs(b[:, :3]).max()
        assert chamfer_deepcad(a, b) == pytest.approx(scale**2*chamfer(a, b, squared=True))
        if num_b > 1: assert chamfer_cad_mllm(a*5, b*5) == pytest.approx(chamfer(a, b)/np.ptp(b[:, :3], axis=0).max())


def test_set_metrics_against_scipy():
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(30))
    assert metrics.jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2)**2)
    made, true = [rng.uniform(-1, 1, (40, 3)) for _ in range(5)], [rng.uniform(-1, 1, (40, 3)) for _ in range(7)]
    d = np.array([[chamfer(a, b, squared=True) for b in true] for a in made])
    found = cov_mmd_jsd(made, true, normalize=False)
    assert found["cov"] == len(set(d.argmin(1)))/7 and found["mmd"] == pytest.approx(d.min(0).mean())


def test_iou_of_boxes_against_the_formula():
    rng = np.random.default_rng(3)
    for _ in range(20):
        lows, sizes = rng.uniform(0, 1, (2, 3)), rng.uniform(.2, 1.5, (2, 3))
        common = np.prod((np.minimum(*(lows + sizes)) - np.maximum(*lows)).clip(0))
        expected = common/(sizes.prod(1).sum() - common)
        assert iou(box(lows[0], sizes[0]), box(lows[1], sizes[1])) == pytest.approx(expected, abs=1e-6)
        assert iou(box(lows[0], sizes[0]), box(lows[1], sizes[0]*2), align="box") == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("values", ["list", "float32", "torch"])
def test_any_kind_of_numbers(values):
    torch = pytest.importorskip("torch")
    kind = dict(
        list=lambda x: np.asarray(x).tolist(), float32=lambda x: np.asarray(x, np.float32),
        torch=lambda x: torch.tensor(np.asarray(x, np.float32), requires_grad=True)
    )[values]
    a, b = [[0, 0, 0], [2, 0, 0]], [[0, 0, 0]]
    assert chamfer(kind(a), kind(b)) == 1 and fscore(kind(a), kind(b), 1) == pytest.approx(2/3)
    assert topology(kind(box()[0]), CUBE.tolist() if values == "list" else CUBE)["closed"]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: chamfer([], [[0, 0, 0]]), "P above 0"), (lambda: chamfer([[0, 0, math.nan]], [[0, 0, 0]]), "NaN"),
        (lambda: fscore([[0, 0]], [[0, 0, 0]], 1), "shape"),
        (lambda: topology([[0, 0, math.nan], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]), "NaN"),
        (lambda: topology(np.eye(3), [[0, 1, 5]]), "vertex 5"),
        (lambda: topology(np.eye(3), [[0, 1, 2, 0]]), "triangulate"),
        (lambda: iou(box(), box(faces=CUBE[:-2])), "bounds no volume"),
        (lambda: relative_segment_error(1, 0), "no pieces")
    ]
)
def test_what_is_no_cloud_or_mesh_is_said(call, words):
    with pytest.raises(ValueError, match=words): call()


def test_failures_are_counted():
    s = Summary(worst=dict(iou=0, chamfer=math.inf))
    for i in range(6): s.add(str(i), iou=.5 + i/10, chamfer=.1)
    s.add("open", iou=None, chamfer=.1)
    for i in range(3): s.fail(f"f{i}", ValueError("no"))
    row = {r["metric"]: r for r in s.table()}
    assert s.invalidity_ratio == .3 and (row["iou"]["num"], row["iou"]["undefined"], row["iou"]["failed"]) == (6, 1, 3)
    assert (
        row["iou"]["mean"] == pytest.approx(.75) and row["iou"]["mean_all"] == pytest.approx(.45)
        and row["iou"]["median_all"] == pytest.approx(.55)
    )
    assert row["chamfer"]["median_all"] == .1 and row["chamfer"]["mean_all"] == math.inf
    json.dumps(s.to_dict(), allow_nan=False)


def by_cgal(vertices, faces):
    "(number of faces, number of faces in an intersecting pair) by CGAL, after its own repair of the soup."
    from CGAL import CGAL_Polygon_mesh_processing as P
    from CGAL.CGAL_Kernel import Point_3
    from CGAL.CGAL_Polyhedron_3 import Polyhedron_3
    points, polygons, mesh, pairs, seen = P.Point_3_Vector(), P.Polygon_Vector(), Polyhedron_3(), [], set()
    for p in vertices: points.append(Point_3(*map(float, p)))
    for f in faces:
        corners = P.Int_Vector()
        for i in f: corners.append(int(i))
        polygons.append(corners)
    P.orient_polygon_soup(points, polygons)
    P.polygon_soup_to_polygon_mesh(points, polygons, mesh)
    P.self_intersections(mesh, pairs)
    def key(face):
        h, corners = face.halfedge(), []
        for _ in range(3):
            p = h.vertex().point()
            corners.append((p.x(), p.y(), p.z()))
            h = h.next()
        return tuple(sorted(corners))
    for pair in pairs: seen |= {key(f) for f in ((pair.first, pair.second) if hasattr(pair, "first") else pair)}
    return mesh.size_of_facets(), len(seen)


def test_self_intersections_against_cgal():
    "Boxes and prisms on a coarse grid, so that they touch in every way; turned, with noise, with holes."
    pytest.importorskip(
        "CGAL", reason="pip install cgal (GPL, for this comparison only) to compare SIR with CGAL itself"
    )
    from manifold3d import Manifold
    rng, nonzero = np.random.default_rng(1), 0
    for k in range(100):
        parts = []
        for _ in range(rng.integers(1, 5)):
            size, at = rng.integers(1, 4, 3)*.5, rng.integers(-3, 4, 3)*.5
            body = (
                Manifold.cube(size.tolist()) if rng.random() < .5
                else Manifold.cylinder(float(size[2]), float(size[0]), float(size[0]), int(rng.integers(3, 12)))
            )
            m = body.translate(at.tolist()).to_mesh64()
            parts.append((np.array(m.vert_properties)[:, :3], np.array(m.tri_verts).astype(int)))
        v, f = together(*parts)
        if k % 3 == 0: v = v @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
        if k % 5 == 0: f = np.delete(f, rng.integers(0, len(f), 3), axis=0)
        if k % 7 == 0: v = v + rng.normal(0, .2, v.shape)
        mesh = repair(v, f)
        ours = len(mesh.faces), len(np.unique(metrics.cutting_faces(mesh)))
        nonzero += ours[1] > 0
        assert ours == by_cgal(v, f), k
    assert nonzero > 30
