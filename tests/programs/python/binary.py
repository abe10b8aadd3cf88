#: verdict: success
#: stdout: ü 3
# What is no ASCII passes unchanged.
print("\u00fc", len("日本語"))
