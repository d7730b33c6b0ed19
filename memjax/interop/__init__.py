"""Import and export of weights of other systems, and the one module that distinguishes kinds of
path (stage.py).
"""
