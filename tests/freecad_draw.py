"""Run by freecadcmd: draws a half-finished part as a person would and saves it as $FREECAD_DRAWN.
A plate whose thickness stands in a spreadsheet, a sketch with named constraints, a through hole on the plate's top face, a fillet last."""
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
    return next(f"Edge{i}" for i, e in enumerate(feature.Shape.Edges, 1) if e.Curve.TypeId == "Part::GeomLine" and abs(e.Vertexes[0].Z - e.Vertexes[-1].Z) > 1)


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


drawn = FreeCAD.newDocument("half")
try:
    draw(drawn)
    drawn.saveAs(os.environ["FREECAD_DRAWN"])
except Exception as error: print("failed:", repr(error))
os._exit(0)
