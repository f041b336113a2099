"""The machines of a run: what a hostfile says, and which of its hosts and slots are used."""

import pytest

from robustly import UserError
from robustly.launch import hosts
from robustly.launch.hosts import Host


def test_parse():
    text = "# two machines\nnodea slots=8\n\n  user@nodeb   slots=4  # the old one\n"
    assert hosts.parse(text, "hosts") == [Host("nodea", 8), Host("user@nodeb", 4)]
    assert Host("user@nodeb", 4).address == "nodeb"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodea slots=8\nnodeb\n", r"hosts:2: found 'nodeb', expected `HOST slots=N`"),
        ("nodea slots=0\n", r"hosts:1: found 'nodea slots=0'"),
        ("nodea slots=two\n", r"hosts:1: found 'nodea slots=two'"),
        ("nodea slots=1\n# again\nnodea slots=1\n", r"hosts:3: nodea stands here twice"),
        ("nodea slots=1\nme@nodea slots=1\n", r"hosts:2: nodea stands here twice"),
        ("# nobody\n", r"hosts: no hosts"),
    ],
)
def test_parse_refuses(text, message):
    with pytest.raises(UserError, match=message):
        hosts.parse(text, "hosts")


THREE = [Host("a", 4), Host("me@b", 2), Host("c", 4)]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("b", [Host("me@b", 2)]),
        ("c:0,2@a", [Host("a", 4), Host("c", 4, (0, 2))]),  # the file's order
        ("c:3,1,3", [Host("c", 4, (1, 3))]),
        ("c:3@c:1", [Host("c", 4, (1, 3))]),
    ],
)
def test_include(chosen, expected):
    assert hosts.include(THREE, chosen) == expected


@pytest.mark.parametrize(
    ("unwanted", "expected"),
    [
        ("b", [Host("a", 4), Host("c", 4)]),
        ("a:0,1@c", [Host("a", 4, (2, 3)), Host("me@b", 2)]),
        ("b:0,1", [Host("a", 4), Host("c", 4)]),  # nothing is left of it
    ],
)
def test_exclude(unwanted, expected):
    assert hosts.exclude(THREE, unwanted) == expected


def test_a_host_of_chosen_slots_has_as_many_ranks_which_see_their_gpus_alone():
    assert Host("c", 4).ranks == 4
    assert Host("c", 4).environment == {}
    assert Host("c", 4, (1, 3)).ranks == 2
    assert Host("c", 4, (1, 3)).environment == {"CUDA_VISIBLE_DEVICES": "1,3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d", "found 'd'; expected HOST or HOST:SLOT,SLOT joined by @"),
        ("me@b", "found 'me'; .* without user names, of the hosts a, b, c"),
        ("a:", "found 'a:'"),
        ("a:x", "found 'a:x'"),
        ("a:0-1", "found 'a:0-1'"),
        ("", "found ''"),
        ("b:2", "b has slots 0 to 1, not 2"),
        ("a@a:1", "a stands here whole, and again"),
        ("a@b@a", "a stands here whole, and again"),
    ],
)
def test_include_and_exclude_refuse(text, message):
    with pytest.raises(UserError, match=message):
        hosts.include(THREE, text)
    with pytest.raises(UserError, match=message):
        hosts.exclude(THREE, text)


@pytest.mark.full
@pytest.mark.parametrize(
    "text", ["a", "c@a", "a:0", "c:3,1,3", "a:1@c:0@a:0", "b:0,1", "b@c:0,1,2,3", "b:1@a"]
)
def test_what_is_chosen_is_what_deepspeed_chooses(text):
    from deepspeed.launcher.runner import parse_resource_filter

    pool = {host.address: list(range(host.slots)) for host in THREE}
    for choose, given in ((hosts.include, "include_str"), (hosts.exclude, "exclude_str")):
        ours = {
            host.address: list(host.chosen or range(host.slots)) for host in choose(THREE, text)
        }
        assert ours == parse_resource_filter(pool, **{given: text})
        assert list(ours) == list(parse_resource_filter(pool, **{given: text}))


def test_exclude_refuses_to_leave_no_host():
    with pytest.raises(UserError, match="--exclude a@b@c: leaves no host"):
        hosts.exclude(THREE, "a@b@c")
