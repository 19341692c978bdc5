"""A teacher's outputs on disk: written once, read by every recipe in place of the live teacher, right under augmentation."""

from stillroom.store.augments import augment
from stillroom.store.exchange import from_parquet, to_parquet
from stillroom.store.reading import Rows
from stillroom.store.views import Views
from stillroom.store.writing import write

__all__ = ["Rows", "Views", "augment", "from_parquet", "to_parquet", "write"]
