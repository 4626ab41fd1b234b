"""One trial: from a CAD model to a trained localizer and its errors. Conventions: `cadloc.geometry`."""
