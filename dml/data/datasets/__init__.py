"""One file per dataset."""

from dml.data.datasets.cars196 import Cars196
from dml.data.datasets.cub200 import CUB200
from dml.data.datasets.data_frame import DataFrameDataset
from dml.data.datasets.dyml import DyMLAnimal, DyMLProduct, DyMLVehicle
from dml.data.datasets.glyphs import Glyphs
from dml.data.datasets.google_landmarks_v2 import GoogleLandmarksV2
from dml.data.datasets.grocery import GroceryStore
from dml.data.datasets.ijb import IJBB, IJBC
from dml.data.datasets.image_folder import ImageFolderDataset
from dml.data.datasets.inaturalist import INaturalist2018
from dml.data.datasets.inshop import InShop
from dml.data.datasets.landmarks_clean import LandmarksClean
from dml.data.datasets.omniglot import Omniglot
from dml.data.datasets.packed import PackedDataset
from dml.data.datasets.revisited import RevisitedOxford, RevisitedParis
from dml.data.datasets.sfm120k import SfM120k
from dml.data.datasets.sop import StanfordOnlineProducts
from dml.data.datasets.vehicleid import VehicleID
from dml.data.datasets.vggface2 import VGGFace2, VGGFace2Tight

__all__ = [
    "CUB200",
    "IJBB",
    "IJBC",
    "Cars196",
    "DataFrameDataset",
    "DyMLAnimal",
    "DyMLProduct",
    "DyMLVehicle",
    "Glyphs",
    "GoogleLandmarksV2",
    "GroceryStore",
    "INaturalist2018",
    "ImageFolderDataset",
    "InShop",
    "LandmarksClean",
    "Omniglot",
    "PackedDataset",
    "RevisitedOxford",
    "RevisitedParis",
    "SfM120k",
    "StanfordOnlineProducts",
    "VGGFace2",
    "VGGFace2Tight",
    "VehicleID",
]
