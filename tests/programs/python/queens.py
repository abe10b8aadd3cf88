#: verdict: success
#: stdout: 92
def place(row, columns, down, up):
    if row == 8:
        return 1
    free = (c for c in range(8) if c not in columns and row - c not in down and row + c not in up)
    return sum(place(row + 1, columns | {c}, down | {row - c}, up | {row + c}) for c in free)


print(place(0, frozenset(), frozenset(), frozenset()))
