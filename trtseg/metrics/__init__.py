"""How well a segmentation agrees with the truth, one module for each family of metrics.

`overlap` counts voxels, `surface` measures millimetres between surfaces, `lesions` asks which lesions were found, and
`ranking` looks at probabilities before any threshold. Each module says which convention its numbers follow: metrics of
one name differ between tools. What is undefined is NaN, never a number that stands for it.

Surfaces need SciPy and ranking needs scikit-learn: ``pip install "trtseg[evaluate]"``.
"""
