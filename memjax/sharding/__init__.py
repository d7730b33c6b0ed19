"""Where arrays lie on the devices."""

from memjax.sharding.mesh import abstract, batch_sharding, check_rows, make_mesh, put_batch, replicated

__all__ = ["abstract", "batch_sharding", "check_rows", "make_mesh", "put_batch", "replicated"]
