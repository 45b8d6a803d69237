"""Images: environments to start from, and the kernel and tools that every guest boots.

:class:`~pyro_async.images.store.ImageStore` is the way in.
"""
