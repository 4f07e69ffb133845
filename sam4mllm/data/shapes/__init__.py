"""The embedded data set `shapes`: seeded scenes of coloured shapes, phrases about them, a writer in the real formats.

    silhouettes   what shapes exist, as outlines
    scenes        several of them in one picture, some partly hidden -> pixels and visible masks
    phrases       what a person would say about a scene -> text and the objects it means
    outlines      a mask -> polygons, for the format that stores polygons
    writer        RefCOCO's, gRefCOCO's and ReasonSeg's files on disk
    marker        the sign that they are generated, and compare with nothing published

Nothing here reads a data set: the readers of the real formats read what the writer leaves.
"""
