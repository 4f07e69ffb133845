"""The checks of `sam4mllm doctor`: whether all families of MLLMs and all segmenters work with the installed libraries.

They run on tiny random models (`sam4mllm.testing`). `families.check_family` runs them on a checkpoint of yours, and
`segmenters.check_segmenter` on a segmenter of yours.
"""
