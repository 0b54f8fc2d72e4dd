"""Malformed, swapped, replayed and withheld keys and shares; and a server that asks for too much."""

import dataclasses
import itertools

import pytest

from secure_triplay.client.masking import MaskingSite
from secure_triplay.client.vault import Vault, new_storage_key
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.masking import MaskContext, MaskingParameters, MaskKeys, Revealed, SealedShares
from secure_triplay.crypto.masking.messages import lists_hash, members_hash
from secure_triplay.errors import CryptoError, ProtocolError

REFUSED = (CryptoError, ProtocolError)


def flipped(content, at=0):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def until(this, step):
    """Everybody answers until before `step`."""

    class StopError(Exception):
        pass

    def stop(here):
        if here == step:
            raise StopError

    with pytest.raises(StopError):
        this.run(before=stop)
    return this


@pytest.mark.parametrize("field", ["seal_key", "mask_key", "self_mask_check", "signature"])
def test_changed_keys_are_refused(new_round, field):
    this = until(new_round(3), "share")
    bad = dataclasses.replace(this.keys[1], **{field: flipped(getattr(this.keys[1], field))})
    with pytest.raises(CryptoError):
        this.sites["site-00"].share([this.keys[0], bad, this.keys[2]])
    for length in (0, 31, 33):
        with pytest.raises(ProtocolError):
            dataclasses.replace(this.keys[1], **{field: bytes(length)})


def test_keys_under_another_name_of_another_round_or_twice_are_refused(new_round):
    this, other = (until(new_round(3, threshold=3, number=number), "share") for number in (1, 2))
    one, two, three = this.keys
    site = this.sites["site-00"]
    for keys in (
        [one, dataclasses.replace(two, site="site-02"), dataclasses.replace(three, site="site-01")],
        [one, other.keys[1], three],
        [one, two, two],
        [one, two],
        [two, three],
        [one, two, dataclasses.replace(three, site="stranger")],
        [other.keys[0], two, three],
    ):
        with pytest.raises(REFUSED):
            site.share(keys)
    assert site.share(this.keys).site == "site-00"


OTHERS = {
    "study": "cd" * 32,
    "epoch": 2,
    "round": 2,
    "roster": {f"site-{at:02d}": SigningIdentity.generate().identity for at in range(4)},
    "parameters": MaskingParameters.choose(4, colluders=0, dropouts=0, threshold=4),
    "graph_seed": b"another seed",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(MaskContext)])
def test_keys_that_a_site_signed_for_one_round_hold_in_nothing_that_differs_from_it(new_round, field):
    """Least of all in the same round under the next epoch's key."""
    this = until(new_round(4, threshold=3), "share")
    other = OTHERS[field]
    if field == "roster":  # the same site among others
        other = {**other, "site-00": this.context.roster["site-00"]}
    elsewhere = dataclasses.replace(this.context, **{field: other})
    this.keys[0].verify(this.context)
    with pytest.raises(CryptoError):
        this.keys[0].verify(elsewhere)


def test_keys_of_small_order_are_refused_by_server_and_site(new_round):
    this = until(new_round(3), "share")
    good, signer = this.keys[1], this.sites["site-01"]._signer
    for seal, mask in (
        (bytes(32), good.mask_key),
        (good.seal_key, bytes(32)),
        (b"\1" + bytes(31), good.mask_key),
    ):
        bad = MaskKeys.signed(this.context, "site-01", signer, seal, mask, good.self_mask_check)
        with pytest.raises(ProtocolError, match="no secret"):
            bad.require_usable()
        site = new_round(3).sites["site-00"]
        with pytest.raises(ProtocolError, match="no secret"):
            keys = [site.advertise(), bad, this.keys[2]]
            sealed = site.share(keys)
            site.mask(this.codec, tuple(this.sites), sealed.sealed, this.values["site-00"])
    for one in this.keys:
        one.require_usable()


def test_a_site_shares_its_secrets_once(new_round):
    this = until(new_round(4, threshold=3), "share")
    site = this.sites["site-00"]
    first = site.share(this.keys)
    assert site.share(reversed(this.keys)) == first
    assert this.restarted("site-00").share(this.keys) == first
    with pytest.raises(ProtocolError, match="other keys"):
        site.share(this.keys[:3])


def test_a_site_masks_one_update_with_one_list(new_round):
    this = until(new_round(4, threshold=3), "agree")
    site, values = this.restarted("site-00"), this.values["site-00"]
    sealed = this.sealed_to("site-00")
    again, masked_with = site.mask(this.codec, this.members, sealed, values)
    assert again.tolist() == this.uploads["site-00"].tolist()
    assert masked_with == this.masked_with["site-00"]
    other = values.copy()
    other[0] = 1 - min(int(other[0]), 1)
    with pytest.raises(ProtocolError, match="another update"):
        site.mask(this.codec, this.members, sealed, other)
    with pytest.raises(ProtocolError, match="other members"):
        site.mask(this.codec, this.members[:3], sealed, values)


@pytest.mark.parametrize("wrong", ["low", "high", "short"])
def test_values_out_of_range_are_not_masked(new_round, wrong):
    this = until(new_round(3), "mask")
    values = this.values["site-00"].copy()
    values[0] = {"low": -1, "high": 2 * this.codec.levels + 1, "short": 0}[wrong]
    with pytest.raises(CryptoError):
        this.sites["site-00"].mask(
            this.codec, this.members, this.sealed_to("site-00"), values[: -1 if wrong == "short" else None]
        )


def test_no_site_agrees_to_a_second_list_even_after_a_restart(new_round):
    this = until(new_round(5, colluders=0, threshold=3), "agree")
    lists = [list(each) for size in (3, 4, 5) for each in itertools.combinations(this.members, size)]
    mine = [tuple(each) for each in lists if "site-00" in each]
    this.sites["site-00"].agree(mine[3], this.masked_with)
    this.restarted("site-00").agree(mine[3], this.masked_with)
    for each in mine[:3] + mine[4:]:
        for site in (this.sites["site-00"], this.restarted("site-00")):
            with pytest.raises(ProtocolError, match="another list"):
                site.agree(each, this.masked_with)
            with pytest.raises(ProtocolError, match="not agreed"):
                site.reveal(each, this.members)


def test_a_list_needs_the_word_of_every_survivor_on_the_same_members(new_round):
    this = until(new_round(4, threshold=3), "agree")
    site, every = this.sites["site-00"], this.survivors
    other = new_round(4, threshold=3, number=2).context
    for wrong in (bytes(32), members_hash(this.context, this.members[:3]), members_hash(other, this.members)):
        with pytest.raises(ProtocolError, match="other members"):
            site.agree(every, {**this.masked_with, "site-02": wrong})
    with pytest.raises(ProtocolError, match="other members"):
        site.agree(every, {name: this.masked_with[name] for name in every[:3]})
    for names in (every[:2], every[::-1], (*every[:3], "stranger"), (*every, "site-00")):
        with pytest.raises(ProtocolError):
            site.agree(tuple(names), this.masked_with)


def test_nothing_is_revealed_before_enough_sites_signed_the_same_list(new_round):
    this = until(new_round(5, colluders=0, threshold=4), "reveal")
    site, names = this.sites["site-00"], list(this.sites)
    for signers in ([], names[:3], names[:3] + names[:1], [*names[:3], "stranger"]):
        with pytest.raises(ProtocolError, match="too few"):
            site.reveal(this.survivors, signers)
    assert set(site.reveal(this.survivors, names[:4]).shares) == set(this.members)
    fresh = until(new_round(5, colluders=0, threshold=4), "agree").sites["site-00"]
    with pytest.raises(ProtocolError, match="not agreed"):
        fresh.reveal(this.survivors, names)


def test_a_site_reveals_one_kind_of_share_of_each_peer(new_round):
    this = new_round(4, threshold=3)
    names = list(this.sites)
    left = names[:3]
    this.run({"advertise": names, "share": names, "mask": left, "agree": left, "reveal": left})
    for one in this.revealed:
        held = this.sites[one.site]._state["held"]
        for peer, share in one.shares.items():
            mask_part, self_part = held[peer][:16], held[peer][16:]
            assert share == (self_part if peer in left else mask_part)


def test_wrong_shares_are_left_out_where_enough_right_ones_are_there(new_round):
    """A site that lies about its shares, signed by itself: with one to spare the sum is right, without it fails."""
    this = new_round(5, threshold=4)
    expected = this.run()
    lists = lists_hash(this.context, this.members, this.survivors)

    def lie(at):
        one = this.revealed[at]
        false = {peer: flipped(share) for peer, share in one.shares.items()}
        signer = this.sites[one.site]._signer
        this.revealed[at] = Revealed.signed(this.context, one.site, signer, lists, false)

    lie(0)
    assert this.unmask().tolist() == expected.tolist()
    lie(3)
    with pytest.raises(ProtocolError):
        this.unmask()


def test_withheld_shares_of_one_peer_are_made_up_for_by_others(new_round):
    this = new_round(5, threshold=4)
    expected = this.run()
    one = this.revealed[0]
    with pytest.raises(CryptoError):  # leaving shares out breaks the revealer's signature
        this.revealed[0] = dataclasses.replace(
            one, shares={peer: share for peer, share in one.shares.items() if peer != "site-03"}
        )
        this.unmask()
    this.revealed = this.revealed[1:]
    assert this.unmask().tolist() == expected.tolist()
    this.revealed = this.revealed[1:]
    with pytest.raises(ProtocolError):
        this.unmask()


def test_sealed_shares_that_are_changed_swapped_or_replayed_open_for_nobody(new_round):
    this, before = (
        until(new_round(4, threshold=3), "mask"),
        until(new_round(4, threshold=3, number=2), "mask"),
    )
    zero, one, two, _ = this.sealed
    me = "site-00"
    content = one.sealed[me]
    for bad in (
        flipped(content),
        flipped(content, len(content) - 1),
        one.sealed["site-02"],
        two.sealed[me],
        zero.sealed["site-01"],
        before.sealed[1].sealed[me],
    ):
        site = this.restarted(me)
        assert site._opened(site._keys()["site-01"], bad) is None
    for length in (0, 47, 49):
        with pytest.raises(ProtocolError):
            dataclasses.replace(one, sealed={me: bytes(length)})
        assert site._opened(site._keys()["site-01"], bytes(length)) is None
    for altered in (
        dataclasses.replace(one, site="site-02"),
        dataclasses.replace(one, sealed={**one.sealed, me: flipped(content)}),
        before.sealed[1],
    ):
        with pytest.raises(CryptoError):
            altered.verify(this.context, this.members)
    short = {peer: sealed for peer, sealed in one.sealed.items() if peer != me}
    with pytest.raises(ProtocolError, match="each of its peers"):
        SealedShares.signed(this.context, "site-01", this.sites["site-01"]._signer, short).verify(
            this.context, this.members
        )
    one.verify(this.context, this.members)
    # the round goes on: others hold shares of that peer
    this.sealed[1] = dataclasses.replace(one, sealed={**one.sealed, me: flipped(content)})
    everybody = list(this.sites)
    sums = this_run_from_mask(this, everybody)
    assert sums.tolist() == this.plain_sums()
    assert "site-01" not in this.revealed[0].shares


def this_run_from_mask(this, names):
    this.uploads, this.masked_with = {}, {}
    for name in names:
        this.mask(name)
    this.survivors = tuple(names)
    for name in names:
        this.sites[name].agree(this.survivors, this.masked_with)
    this.revealed = [this.sites[name].reveal(this.survivors, names) for name in names]
    return this.unmask()


def test_seeds_that_a_server_made_up_are_not_used(new_round):
    this = new_round(3)
    this.run()
    by_site = {one.site: one for one in this.keys}
    good = this.recovered.survivors
    swapped = {**good, "site-00": good["site-01"], "site-01": good["site-00"]}
    for seeds, kind in ((swapped, CryptoError), (dict(list(good.items())[:2]), ProtocolError)):
        with pytest.raises(kind):
            dataclasses.replace(this.recovered, survivors=seeds).verify(
                this.context, by_site, this.members, this.survivors
            )
    both = dataclasses.replace(this.recovered, lost={"site-00": bytes(16)})
    with pytest.raises(ProtocolError):
        both.verify(this.context, by_site, this.members, this.survivors)


def test_state_of_other_parameters_is_refused(new_round):
    this = until(new_round(4, threshold=3), "share")
    other = new_round(4, threshold=4)
    with pytest.raises(ProtocolError, match="other parameters"):
        MaskingSite(other.context, "site-00", this.sites["site-00"]._signer, this.stores["site-00"])
    with pytest.raises(CryptoError):
        MaskingSite(other.context, "site-01", this.sites["site-00"]._signer, this.stores["site-00"])


def test_the_vault_serves_as_store(new_round, tmp_path):
    this = new_round(3)
    vault = Vault(tmp_path / "vault", new_storage_key(), study=this.context.study, epoch=1)
    signer = this.sites["site-00"]._signer
    keys = MaskingSite(this.context, "site-00", signer, vault).advertise()
    assert MaskingSite(this.context, "site-00", signer, vault).advertise() == keys
    seed = MaskingSite(this.context, "site-00", signer, vault)._state["self_seed"]
    assert not any(seed in path.read_bytes() for path in (tmp_path / "vault").iterdir())


def test_a_round_s_secrets_have_no_repr_and_no_pickle(new_round):
    import pickle

    site = new_round(3).sites["site-00"]
    site.advertise()
    assert repr(site) == "<MaskingSite>"
    with pytest.raises(CryptoError):
        pickle.dumps(site)
