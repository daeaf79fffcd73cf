"""Run by freecadcmd: opens the documents listed in $FREECAD_DOCUMENTS, recomputes and edits each, and writes what it
finds to $FREECAD_REPORT."""
import json
import os
import time

import FreeCAD


def volume(document):
    "Of the bodies and solids that nothing else is made of."
    made = [
        o for o in document.Objects if o.TypeId == "PartDesign::Body" or hasattr(o, "Shape")
        and o.TypeId.startswith("Part::")
    ]
    results = [o for o in made if not any(i.TypeId.startswith("Part::") for i in o.InList)]
    return sum(0.0 if o.Shape.isNull() else o.Shape.Volume for o in results)


def stored_volume(document):
    "Of the shapes that a document brings of its tips and visible solids, before anything is computed."
    shown = [o.Tip for o in document.Objects if o.TypeId == "PartDesign::Body" and o.Tip]
    shown += [o for o in document.Objects if o.Visibility and o.TypeId.startswith("Part::")]
    return sum(o.Shape.Volume for o in shown if not o.Shape.isNull())


def errors(document): return [f"{o.Name}: {o.getStatusString()}" for o in document.Objects if not o.isValid()]


def lengthen(document, by=1.1):
    "Make the first pad so many times as long."
    pads = [o for o in document.Objects if o.TypeId in ("PartDesign::Pad", "Part::Extrusion")]
    for o in pads:
        if o.Label2 != pads[0].Label2: continue
        for k in ("Length", "Length2", "LengthFwd", "LengthRev"):
            if hasattr(o, k): setattr(o, k, getattr(o, k).Value*by)


def check(path):
    start, document = time.process_time(), FreeCAD.openDocument(path)
    stored = stored_volume(document)
    document.recompute()
    sketches = [o for o in document.Objects if o.TypeId == "Sketcher::SketchObject"]
    found = {
        "path": path, "stored_volume": stored, "volume": volume(document), "errors": errors(document),
        "sketches": len(sketches), "unsolved": [o.Name for o in sketches if o.solve()],
        "fully_constrained": sum(o.FullyConstrained for o in sketches)
    }
    found["opened"] = time.process_time() - start
    lengthen(document)
    document.recompute()
    found.update(edited_volume=volume(document), edited_errors=errors(document), seconds=time.process_time() - start)
    FreeCAD.closeDocument(document.Name)
    return found


def report(entry):
    with open(os.environ["FREECAD_REPORT"], "a") as f: f.write(json.dumps(entry) + "\n")


for name in open(os.environ["FREECAD_DOCUMENTS"]).read().splitlines():
    report({"begins": name})
    try: report(check(name))
    except Exception as e: report({"path": name, "failed": repr(e)})
os._exit(0)
