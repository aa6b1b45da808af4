from rightreasons.config import DataConfig
from rightreasons.data.listing import Listing
from rightreasons.data.tree import Tree
from rightreasons.errors import DataError


def recognise(tree: Tree, config: DataConfig) -> bool:
    return False


def list_images(tree: Tree, config: DataConfig) -> Listing:
    raise DataError("")
