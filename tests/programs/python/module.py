#: verdict: success
#: file: shapes.py
#: stdout: 12 rectangles
import shapes

print(shapes.area(3, 4), shapes.NAME)
