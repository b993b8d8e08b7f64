"""Names for the array types that pass between the runtime's modules."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Int8Array = npt.NDArray[np.int8]
AnyArray = FloatArray | IntArray | BoolArray | Int8Array
