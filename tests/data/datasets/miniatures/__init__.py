"""Miniatures of the data sets: the files and names of the real ones, with drawn images that can be learned."""

from tests.data.datasets.miniatures.cars196 import make_cars196
from tests.data.datasets.miniatures.cub200 import make_cub200
from tests.data.datasets.miniatures.dyml import make_dyml_benchmarks, make_dyml_product
from tests.data.datasets.miniatures.google_landmarks_v2 import make_google_landmarks_v2
from tests.data.datasets.miniatures.grocery import make_grocery
from tests.data.datasets.miniatures.ijb import make_ijbb, make_ijbc
from tests.data.datasets.miniatures.inaturalist import make_inaturalist
from tests.data.datasets.miniatures.inshop import make_inshop
from tests.data.datasets.miniatures.landmarks_clean import make_landmarks_clean
from tests.data.datasets.miniatures.omniglot import make_omniglot
from tests.data.datasets.miniatures.revisited import make_revisited_oxford, make_revisited_paris
from tests.data.datasets.miniatures.sfm120k import make_sfm120k
from tests.data.datasets.miniatures.sop import make_sop
from tests.data.datasets.miniatures.vehicleid import make_vehicleid
from tests.data.datasets.miniatures.vggface2 import make_vggface2

MINIATURES = {
    "CUB200": make_cub200,
    "Cars196": make_cars196,
    "DyMLAnimal": make_dyml_benchmarks,
    "DyMLProduct": make_dyml_product,
    "DyMLVehicle": make_dyml_benchmarks,
    "GoogleLandmarksV2": make_google_landmarks_v2,
    "GroceryStore": make_grocery,
    "IJBB": make_ijbb,
    "IJBC": make_ijbc,
    "INaturalist2018": make_inaturalist,
    "InShop": make_inshop,
    "LandmarksClean": make_landmarks_clean,
    "Omniglot": make_omniglot,
    "RevisitedOxford": make_revisited_oxford,
    "RevisitedParis": make_revisited_paris,
    "SfM120k": make_sfm120k,
    "StanfordOnlineProducts": make_sop,
    "VGGFace2": make_vggface2,
    "VGGFace2Tight": make_vggface2,
    "VehicleID": make_vehicleid,
}
"""What makes one, by the name of the class of the data set."""

__all__ = [
    "MINIATURES",
    "make_cars196",
    "make_cub200",
    "make_dyml_benchmarks",
    "make_dyml_product",
    "make_google_landmarks_v2",
    "make_grocery",
    "make_ijbb",
    "make_ijbc",
    "make_inaturalist",
    "make_inshop",
    "make_landmarks_clean",
    "make_omniglot",
    "make_revisited_oxford",
    "make_revisited_paris",
    "make_sfm120k",
    "make_sop",
    "make_vehicleid",
    "make_vggface2",
]
