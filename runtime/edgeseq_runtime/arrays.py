"""Names for the array types that pass between the runtime's modules."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
AnyArray = npt.NDArray[np.float32] | npt.NDArray[np.int64] | npt.NDArray[np.bool_]
