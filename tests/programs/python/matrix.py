#: verdict: success
#: stdout: [[19, 22], [43, 50]]
import numpy

print((numpy.array([[1, 2], [3, 4]]) @ numpy.array([[5, 6], [7, 8]])).tolist())
