"""A miniature of PKU VehicleID."""

from pathlib import Path

from tests.data.datasets.miniatures.drawing import photo, save

LISTS = ("train_list", "test_list_800", "test_list_1600", "test_list_2400")


def make_vehicleid(root: Path, *, num_vehicles: int = 20, images_per_vehicle: int = 4) -> Path:
    """Draw so many vehicles for train, and as many others, of which each test list has two thirds.

    Every second training vehicle has a model, every third a colour.
    """
    lines = {name: [] for name in LISTS}
    models, colors, all_images = [], [], []
    for vehicle in range(2 * num_vehicles):
        # Ids have gaps, and their order is neither that of the images nor that of the lists.
        vehicle_id = 26328 - 7 * vehicle
        name = f"{vehicle_id} {vehicle % 5}\n"
        is_train = vehicle < num_vehicles
        models += [name] if is_train and vehicle % 2 == 0 else []
        colors += [name] if is_train and vehicle % 3 == 0 else []
        for number in range(images_per_vehicle):
            image = 10 * vehicle + number + 1
            save(photo(vehicle % 5, vehicle, number), root / "image" / f"{image:07}.jpg")
            row = f"{image:07} {vehicle_id}\n"
            all_images.append(row)
            for part, test in enumerate(LISTS[1:]):
                if not is_train and (vehicle + part) % 3 < 2:
                    lines[test].append(row)
            if is_train:
                lines["train_list"].append(row)
    for folder, files in (
        ("train_test_split", lines),
        ("attribute", {"model_attr": models, "color_attr": colors, "img2vid": all_images}),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            (root / folder / f"{name}.txt").write_text("".join(rows))
    return root
