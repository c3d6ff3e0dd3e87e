import pytest

from secondsite.errors import InvalidInputError
from secondsite.model.ids import parse_digest, parse_disk_key, parse_item_id


@pytest.mark.parametrize("text", ["vda", "sdb", "nvme0n1", "a" * 16])
def test_disk_keys_are_target_devices(text):
    assert parse_disk_key(text) == text


@pytest.mark.parametrize("text", ["", "VDA", "vd/a", "../vda", "vda\n", "1a", "a" * 17, None, 5, b"vda"])
def test_a_disk_key_is_safe_as_a_name_of_a_file(text):
    with pytest.raises(InvalidInputError):
        parse_disk_key(text)


def test_an_item_id_is_a_uuid_in_lower_case():
    text = "0a1b2c3d-0000-4000-8000-123456789abc"
    assert parse_item_id(text) == text


@pytest.mark.parametrize("text", ["", "0A1B2C3D-0000-4000-8000-123456789ABC", "0a1b2c3d" * 4, "..", None, 7])
def test_what_is_no_uuid_is_no_item_id(text):
    with pytest.raises(InvalidInputError):
        parse_item_id(text)


def test_a_digest_is_64_hexadecimal_digits():
    assert parse_digest("0f" * 32) == "0f" * 32


@pytest.mark.parametrize("text", ["", "0f" * 31, "0F" * 32, "0g" * 32, "0f" * 32 + "\n", None])
def test_what_is_no_digest_is_refused(text):
    with pytest.raises(InvalidInputError):
        parse_digest(text)
