"""Fusion 360 scripts run against a stand-in of its API that records what they do; FeatureScripts are read line by line.
Both give a history back.
The stand-in has what the scripts use, with the meaning that Autodesk's reference gives it: lengths in centimetres, and
a sketch on a plane of three points
whose axes nobody chose (here they are turned, and every second normal is flipped)."""
import math
import re
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np

from cad_mllm.cad import CADProgram
from cad_mllm.interop.drawing import center_arc, closed_loops, frame_of, line_curve, nested_profiles, three_point_arc

CENTIMETRES, MILLIMETRES = .01, .001


def add_push(program, profile, frame, low, high, operation):
    "Append a sketch of one profile and its extrude; metres."
    program.sketch(profile, frame=frame)
    if low < 0 < high: program.extrude(high, operation, extent="two", distance_two=-low)
    else: program.extrude(high if high > 0 else low, operation)


# Fusion 360

@dataclass
class Point:
    x: float
    y: float
    z: float

    @property
    def array(self): return np.array([self.x, self.y, self.z])

    def crossProduct(self, other): return Point(*np.cross(self.array, other.array))


@dataclass
class SketchPoint(Point):
    "A point of a sketch, in its axes; `world` is where it is."
    world: np.ndarray = None


class FusionSketch:
    "A sketch on a plane: `origin` and axes as columns, in centimetres of the world."
    def __init__(self, origin, axes):
        self.origin, self.axes, self.curves, self.name = origin, axes, [], ""
        self.xDirection, self.yDirection = Point(*axes[:, 0]), Point(*axes[:, 1])
        self.sketchPoints = SimpleNamespace(add=lambda p: SketchPoint(p.x, p.y, p.z, self.to_world(p)))
        self.sketchCurves = SimpleNamespace(
            sketchCircles=SimpleNamespace(
                addByCenterRadius=lambda c, r: self.draw(center_arc((c.x, c.y), r, 0, math.tau))
            ),
            sketchLines=SimpleNamespace(addByTwoPoints=self.add_line),
            sketchArcs=SimpleNamespace(addByThreePoints=self.add_arc)
        )
        self.ends = []

    def draw(self, curve): self.curves.append(curve)

    def add_line(self, a, b):
        self.ends += [a, b]
        self.draw(line_curve((a.x, a.y), (b.x, b.y)))

    def add_arc(self, a, m, b):
        self.ends += [a, b]
        self.draw(three_point_arc((a.x, a.y), (m.x, m.y), (b.x, b.y)))

    def to_world(self, p): return self.origin + self.axes@p.array

    def modelToSketchSpace(self, p):
        local = self.axes.T@(p.array - self.origin)
        assert abs(local[2]) < 1e-9, "a point that does not lie on the sketch"
        return Point(*local)

    @property
    def profiles(self):
        "The regions that the curves enclose: each outer loop less its holes, and each hole."
        used = Counter(map(id, self.ends))
        assert set(used.values()) <= {2}, "curves that do not share their ends"
        regions = nested_profiles(closed_loops(self.curves))
        regions += [[hole] for region in regions for hole in region[1:]]
        return [
            SimpleNamespace(sketch=self, loops=r, profileLoops=SimpleNamespace(count=len(r))) for r in regions
        ][::-1]


@dataclass
class FusionDesign:
    "The root component of a design; `pushes` are what was extruded."
    pushes: list = field(default_factory=list)
    num_planes: int = 0

    def __post_init__(self):
        self.xYConstructionPlane = (np.zeros(3), np.eye(3))
        self.sketches = SimpleNamespace(add=lambda plane: FusionSketch(*plane))
        self.constructionPlanes = SimpleNamespace(createInput=SimpleNamespace, add=self.plane_of)
        self.constructionPlanes.createInput = lambda: PlaneInput()
        self.features = SimpleNamespace(extrudeFeatures=SimpleNamespace(createInput=ExtrudeInput, add=self.extrude))

    def plane_of(self, asked):
        "A plane through three points, its axes turned by 0.7 and every second normal flipped."
        a, b, c = asked.points
        self.num_planes += 1
        normal = np.cross(b - a, c - a)*(-1)**self.num_planes
        frame = frame_of(a, math.cos(.7)*(b - a) + math.sin(.7)*(c - a), normal)
        return a, frame.rotation.T

    def extrude(self, asked):
        self.pushes.append(asked)
        return SimpleNamespace(name="")


class PlaneInput:
    def setByThreePoints(self, *points): self.points = [p.world for p in points]


class ExtrudeInput:
    "An extrude with its span along the sketch's normal, in centimetres."
    def __init__(self, profile, operation): self.profile, self.operation = profile, operation

    def setTwoSidesExtent(self, forward, backward): self.span = (-backward, forward)

    def setOneSideExtent(self, distance, direction):
        self.span = (0, distance) if direction == "positive" else (-distance, 0)


FUSION_NAMES = dict(
    NewBodyFeatureOperation="new", JoinFeatureOperation="join", CutFeatureOperation="cut",
    IntersectFeatureOperation="intersect"
)


@contextmanager
def fusion_modules(design):
    "`adsk.core` and `adsk.fusion` as modules, while a script runs."
    adsk, core, fusion = (ModuleType(n) for n in ("adsk", "adsk.core", "adsk.fusion"))
    adsk.core, adsk.fusion = core, fusion
    core.Point3D, core.ValueInput = SimpleNamespace(create=Point), SimpleNamespace(createByReal=lambda v: v)
    core.Application = SimpleNamespace(get=lambda: SimpleNamespace(activeProduct=SimpleNamespace(rootComponent=design)))
    fusion.Design, fusion.FeatureOperations = SimpleNamespace(cast=lambda p: p), SimpleNamespace(**FUSION_NAMES)
    fusion.DistanceExtentDefinition = SimpleNamespace(create=lambda v: v)
    fusion.ExtentDirections = SimpleNamespace(PositiveExtentDirection="positive", NegativeExtentDirection="negative")
    sys.modules.update({m.__name__: m for m in (adsk, core, fusion)})
    try: yield
    finally:
        for name in ("adsk", "adsk.core", "adsk.fusion"): sys.modules.pop(name, None)


def run_fusion(text):
    "The history of what a script does in Fusion 360."
    design, program = FusionDesign(), CADProgram()
    with fusion_modules(design):
        names = {"__name__": "script"}
        exec(compile(text, "part_fusion.py", "exec"), names)
        names["run"](None)
    for push in design.pushes:
        sketch = push.profile.sketch
        frame = frame_of(sketch.origin*CENTIMETRES, sketch.axes[:, 0], sketch.axes[:, 2])
        low, high = (v*CENTIMETRES for v in push.span)
        add_push(program, [scaled(ring, CENTIMETRES) for ring in push.profile.loops], frame, low, high, push.operation)
    return program


def scaled(loop, factor):
    "A loop in metres."
    from cad_mllm.cad.curves import Contour
    from cad_mllm.cad.program import contour_loop
    c = loop.contour()
    return contour_loop(
        Contour(c.vertices*factor, [None if m is None else m*factor for m in c.mids], c.radius and c.radius*factor)
    )


# FeatureScript

class FeatureScriptReader:
    "Reads the statements that `write_featurescript` uses, one a line; an unknown one is an error."
    def __init__(self):
        self.names, self.sketches, self.program, self.pushes = {"millimeter": 1.0}, {}, CADProgram(), []

    def value(self, text):
        "A number or vector: names, products, vector(...)."
        assert re.fullmatch(r"[\w\s.+*,()-]+", text), text
        return eval(text, {"__builtins__": {}, "vector": lambda *v: np.array(v, float)}, self.names)

    def field(self, line, name):
        "The value of a field of a map."
        found = re.search(rf'"{name}" : ((?:vector\([^)]*\)|[\w.+-]+)(?: \* millimeter)?)', line)
        return self.value(found[1]) if found else None

    def line(self, line):
        "Read one statement."
        if found := re.fullmatch(r"const (\w+_\d+) = (.+ \* millimeter);", line):
            self.names[found[1]] = self.value(found[2])
        elif found := re.match(
            r'const (\w+) = newSketchOnPlane\(context, id \+ "\1", \{ "sketchPlane" : plane\((vector\(.*?\) \* '
            r'millimeter), (vector\(.*?\)), (vector\(.*?\))\) \}\);',
            line
        ):
            origin, normal, x = map(self.value, found.groups()[1:])
            self.sketches[found[1]] = (frame_of(origin*MILLIMETRES, x, normal), [])
        elif found := re.match(r"sk(\w+)\((\w+), ", line): self.draw(found[1], self.sketches[found[2]][1], line)
        elif found := re.match(
            r'opExtrude\(context, id \+ "\w+", \{ "entities" : qSketchRegion\(id \+ "(\w+)", true\), ', line
        ):
            self.extrude(found[1], line)
        elif "opBoolean(" in line: self.combine(re.search(r"BooleanOperationType\.(\w+)", line)[1])
        elif not re.match(r"//|skSolve\(|const tools_\d+ = qUnion|try silent|[{}]|const solids = ", line):
            raise AssertionError(f"unknown: {line}")

    def draw(self, kind, curves, line):
        "One drawing call."
        if kind == "Circle":
            curves.append(center_arc(self.field(line, "center"), self.field(line, "radius"), 0, math.tau))
        elif kind == "Rectangle":
            (x0, y0), (x1, y1) = self.field(line, "firstCorner"), self.field(line, "secondCorner")
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
            curves += [line_curve(a, b) for a, b in zip(corners, corners[1:] + corners[:1])]
        elif kind == "LineSegment": curves.append(line_curve(self.field(line, "start"), self.field(line, "end")))
        elif kind == "Arc": curves.append(three_point_arc(*(self.field(line, k) for k in ("start", "mid", "end"))))
        else: assert kind == "Solve", kind

    def extrude(self, name, line):
        "A solid that stands alone until it is combined."
        frame, curves = self.sketches[name]
        down = np.allclose(self.field(line, "direction"), -np.array(frame.z_axis))
        assert down or np.allclose(self.field(line, "direction"), frame.z_axis)
        assert line.count("BoundingType.BLIND") == line.count("Bound\"")
        start, end = ((self.field(line, f"{side}Depth") or 0.0)*MILLIMETRES for side in ("start", "end"))
        assert end > 0, "an extrude without depth along its direction"
        profile, = nested_profiles(closed_loops(curves))
        self.pushes.append((profile, frame, -end, start) if down else (profile, frame, -start, end))

    def combine(self, operation):
        "Take in what was pushed since, as a boolean says."
        self.settle({"UNION": "join", "SUBTRACTION": "cut", "SUBTRACT_COMPLEMENT": "intersect"}[operation])

    def settle(self, operation):
        for profile, *place in self.pushes:
            first = not len(self.program)
            loops = [scaled(ring, MILLIMETRES) for ring in profile]
            add_push(self.program, loops, *place, "new" if first else operation)
        self.pushes = []


def read_featurescript(text):
    "The history that a FeatureScript of ours states."
    start = text.index("        const solids")
    reader = FeatureScriptReader()
    for line in text[start:text.rindex("    });")].splitlines(): reader.line(line.strip())
    reader.settle("new")
    return reader.program
