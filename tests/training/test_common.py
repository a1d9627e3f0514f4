"""What all rooms share."""

import pytest
import yaml

from mmcot.training.common import read_yaml


def test_a_key_that_a_yaml_file_says_twice_is_refused_and_one_of_another_type_is_another():
    assert read_yaml("{1: a, '1': b}") == {1: "a", "1": "b"}
    with pytest.raises(yaml.YAMLError, match="key 'a' occurs twice .line 2"):
        read_yaml("a: 1\na: 2")
