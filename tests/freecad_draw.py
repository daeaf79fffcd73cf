"""Run by freecadcmd: draws a part as a person would and saves it as $FREECAD_DRAWN; $FREECAD_WHAT says which.
half: a plate whose thickness stands in a spreadsheet, a sketch with named constraints, a through hole on the plate's
top face, a fillet last.
patterns: a plate, turned and moved, with mirrors and patterns of every kind; edge: a pattern that goes by an edge.
Prints the volume of the body."""
import os

import FreeCAD
import Part
import Sketcher
from FreeCAD import Vector


def outline(sketch, corners):
    "Draw a closed polygon with its constraints; the first corner stands at the origin."
    sides = [Part.LineSegment(Vector(*a, 0), Vector(*b, 0)) for a, b in zip(corners, corners[1:] + corners[:1])]
    sketch.addGeometry(sides, False)
    count = len(sides)
    sketch.addConstraint([Sketcher.Constraint("Coincident", i, 2, (i + 1) % count, 1) for i in range(count)])
    sketch.addConstraint([Sketcher.Constraint("Vertical" if i % 2 else "Horizontal", i) for i in range(count)])
    sketch.addConstraint(Sketcher.Constraint("Coincident", 0, 1, -1, 1))
    for kind, line, name in (("DistanceX", 0, "width"), ("DistanceY", 1, "height")):
        size = corners[1][0] if name == "width" else corners[2][1]
        sketch.renameConstraint(sketch.addConstraint(Sketcher.Constraint(kind, line, 1, line, 2, size)), name)


def new_sketch(body, support, part=""):
    "A sketch on a plane, or on a face of a feature."
    sketch = body.newObject("Sketcher::SketchObject", "Sketch")
    setattr(sketch, "AttachmentSupport" if hasattr(sketch, "AttachmentSupport") else "Support", (support, [part]))
    sketch.MapMode = "FlatFace"
    return sketch


def face_at(feature, height):
    "The name of the face whose center lies at a height."
    return next(f"Face{i}" for i, f in enumerate(feature.Shape.Faces, 1) if abs(f.CenterOfMass.z - height) < 1e-6)


def upright_edge(feature):
    "The name of a straight edge along z."
    return next(
        f"Edge{i}" for i, e in enumerate(feature.Shape.Edges, 1) if e.Curve.TypeId == "Part::GeomLine"
        and abs(e.Vertexes[0].Z - e.Vertexes[-1].Z) > 1
    )


def draw(document):
    body = document.addObject("PartDesign::Body", "Body")
    sheet = document.addObject("Spreadsheet::Sheet", "Dimensions")
    sheet.set("A1", "5")
    sheet.setAlias("A1", "thick")
    base = new_sketch(body, document.getObject("XY_Plane"))
    outline(base, [(0, 0), (40, 0), (40, 20), (0, 20)])
    document.recompute()
    pad = body.newObject("PartDesign::Pad", "Pad")
    pad.Profile = base
    pad.setExpression("Length", "Dimensions.thick * 1mm")
    document.recompute()
    hole = new_sketch(body, pad, face_at(pad, 5))
    hole.addGeometry(Part.Circle(Vector(10, 10, 0), Vector(0, 0, 1), 3), False)
    pocket = body.newObject("PartDesign::Pocket", "Pocket")
    pocket.Profile, pocket.Type = hole, 1
    document.recompute()
    fillet = body.newObject("PartDesign::Fillet", "Fillet")
    fillet.Base, fillet.Radius = (pocket, [upright_edge(pocket)]), 2
    document.recompute()


def rectangle(x, y, width, height):
    corners = [Vector(x, y, 0), Vector(x + width, y, 0), Vector(x + width, y + height, 0), Vector(x, y + height, 0)]
    return [Part.LineSegment(a, b) for a, b in zip(corners, corners[1:] + corners[:1])]


class Bench:
    "A body and a plate in it, on whose top face things are drawn."
    def __init__(self, document):
        self.document, self.body = document, document.addObject("PartDesign::Body", "Body")
        self.body.Placement = FreeCAD.Placement(Vector(3, -2, 7), FreeCAD.Rotation(20, 30, 40))
        base = new_sketch(self.body, document.getObject("XY_Plane"))
        base.addGeometry(rectangle(-40, -40, 80, 80), False)
        self.plate = self.add("Pad", Profile=base, Length=5)
        self.top = face_at(self.plate, 5)

    def add(self, kind, **properties):
        "A feature at the end of the body."
        feature = self.body.newObject(f"PartDesign::{kind}", kind)
        for name, value in properties.items(): setattr(feature, name, value)
        self.body.Tip = feature
        self.document.recompute()
        return feature

    def drawn(self, *curves):
        "A sketch on the top face."
        sketch = new_sketch(self.body, self.plate, self.top)
        sketch.addGeometry(list(curves), False)
        return sketch

    def hole(self, x, y, radius):
        return self.add("Pocket", Profile=self.drawn(Part.Circle(Vector(x, y, 0), Vector(0, 0, 1), radius)), Type=1)

    def block(self, x, y, width, height, length):
        sketch = self.drawn(*rectangle(x, y, width, height))
        return sketch, self.add("Pad", Profile=sketch, Length=length)

    def origin(self, name): return self.document.getObject(name), [""]


def draw_patterns(document):
    bench = Bench(document)
    bench.add(
        "LinearPattern", Originals=[bench.hole(10, 0, 2)], Direction=bench.origin("Y_Axis"), Length=20, Occurrences=3
    )
    bench.add("Mirrored", Originals=[bench.block(20, 20, 6, 7, 4)[1]], MirrorPlane=bench.origin("YZ_Plane"))
    bench.add("PolarPattern", Originals=[bench.hole(-20, -5, 3)], Axis=bench.origin("Z_Axis"), Angle=360, Occurrences=4)
    sketch, block = bench.block(-35, 30, 3, 4, 2)
    bench.add(
        "LinearPattern", Originals=[block], Direction=(sketch, ["V_Axis"]), Length=10, Occurrences=2, Reversed=True
    )
    sketch, block = bench.block(2, -35, 3, 4, 3)
    bench.add("Mirrored", Originals=[block], MirrorPlane=(sketch, ["V_Axis"]))
    bench.add(
        "PolarPattern", Originals=[bench.hole(35, 2, 2)], Axis=bench.origin("Z_Axis"), Angle=40, Occurrences=3,
        Reversed=True
    )
    _, block = bench.block(30, 8, 4, 3, 6)
    mirror, ring = (document.addObject(f"PartDesign::{kind}", kind) for kind in ("Mirrored", "PolarPattern"))
    mirror.MirrorPlane = bench.origin("XZ_Plane")
    ring.Axis, ring.Angle, ring.Occurrences = bench.origin("Z_Axis"), 180, 2
    bench.add("MultiTransform", Originals=[block], Transformations=[mirror, ring])


def draw_edge(document):
    bench = Bench(document)
    bench.add(
        "LinearPattern", Originals=[bench.hole(10, 0, 2)], Direction=(bench.plate, ["Edge1"]), Length=20, Occurrences=3
    )


drawn = FreeCAD.newDocument("drawn")
try:
    {"half": draw, "patterns": draw_patterns, "edge": draw_edge}[os.environ.get("FREECAD_WHAT", "half")](drawn)
    drawn.saveAs(os.environ["FREECAD_DRAWN"])
except Exception as error: print("failed:", repr(error))
os._exit(0)
