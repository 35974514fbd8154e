"""The parts of `bench_gpu.py`: each measures one thing, in a time of its own."""
