"""Speed and memory: of TPU slices by their compiler (aot), and of local devices (bench)."""
