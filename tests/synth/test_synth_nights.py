"""Nights that could have been: dark, high, with all that goes wrong in them."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.coordinates import AltAz, EarthLocation, SkyCoord, get_sun
from astropy.time import Time

from nightloom.errors import ConfigError
from nightloom.synth.nights import Scene, World, make_world
from nightloom.synth.truth import TRANSIT, SynthSpec, offline

SPEC = SynthSpec(n_fields=2, filters=("V", "R"), n_nights=3, frames_per_night=30)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(SPEC)


def scenes(world: World, field: int) -> list[Scene]:
    return [frame.scene for frame in world.starlight[field].frames if frame.scene is not None]


def test_every_frame_is_there_once_and_in_the_order_of_time(world: World) -> None:
    science = [f for f in world.frames if f.image_type == "science"]
    assert len(science) == 2 * 2 * 3 * 30
    assert len(world.frames) == len(science) + 3 * (9 + 7 + 2 * 7)
    assert [f.index for f in world.frames] == list(range(len(world.frames)))
    assert len({f.path for f in world.frames}) == len(world.frames)
    ends = [f.start_ms + f.exposure_s * 1000 for f in world.frames]
    assert all(b.start_ms > end for end, b in zip(ends, world.frames[1:], strict=False))


def test_science_is_taken_in_the_dark_and_high_up(world: World) -> None:
    light = world.starlight[1]
    site = EarthLocation.from_geodetic(-16.51, 28.3, 2390)
    with offline():
        times = Time([f.jd_utc for f in light.frames], format="jd", scale="utc")
        sky = AltAz(obstime=times, location=site)
        centre = SkyCoord(0.0, 26.8, unit="deg").transform_to(sky)
        assert (get_sun(times).transform_to(sky).alt.deg < -18).all()
    airmass = np.array([scene.airmass for scene in scenes(world, 1)])
    np.testing.assert_allclose(airmass, centre.secz, rtol=1e-5)
    assert airmass.max() < 2


def test_each_night_holds_a_transit_with_sky_on_both_sides(world: World) -> None:
    for field, light in zip(world.fields, world.starlight, strict=True):
        stars = field.stars
        bjd = np.array([scene.bjd_tdb for scene in scenes(world, light.frames[0].scene.field)])
        nights = np.array([frame.night for frame in light.frames])
        for night in np.unique(nights):
            period = stars.period_d[TRANSIT]
            phase = (bjd[nights == night] - stars.epoch_bjd[TRANSIT] + period / 2) % period
            hours = (phase - period / 2) * 24
            assert hours.min() < -1.5
            assert hours.max() > 1.5


def test_the_light_follows_airmass_transparency_and_the_transit() -> None:
    quiet = SynthSpec(cloud=False, flip=False, trailed=False)
    light = make_world(quiet).starlight[0]
    flux = light.flux_e / np.median(light.flux_e, axis=0)
    constant = flux[:, 7]
    assert np.ptp(constant) > 0.03
    np.testing.assert_allclose(flux[:, 8:] / constant[:, None], 1, rtol=1e-12)
    dip = flux[:, TRANSIT] / constant
    np.testing.assert_allclose(dip.min() / dip.max(), 0.98, atol=1e-12)
    assert np.unique(np.round(dip / dip.max(), 9)).size > 5


def test_what_goes_wrong_goes_wrong_where_it_should(world: World) -> None:
    sky = scenes(world, 0)
    nights = np.array([frame.night for frame in world.starlight[0].frames])
    kinds = np.array([scene.kind for scene in sky])
    assert set(nights[kinds == "flipped"]) == {"2024-10-02"}
    assert 20 < (kinds == "flipped").sum() < 40
    assert set(nights[kinds == "cloudy"]) == {"2024-10-03"}
    assert min(scene.transparency for scene in sky) < 0.45
    trailed = [s for f in (0, 1) for s in scenes(world, f) if s.kind == "trailed"]
    assert len(trailed) == 1
    assert trailed[0].elongation > 2
    turned = np.array([scene.rotation_deg for scene in sky])
    assert (np.abs(turned[kinds == "flipped"] - 180) < 2).all()
    assert (np.abs(turned[kinds != "flipped"]) < 2).all()


def test_everything_that_goes_wrong_can_be_switched_off() -> None:
    calm = SynthSpec(frames_per_night=20, cloud=False, flip=False, trailed=False)
    assert {scene.kind for scene in scenes(make_world(calm), 0)} == {"good"}


def test_drift_takes_stars_out_of_the_frame(world: World) -> None:
    light = world.starlight[0]
    night = np.array([frame.night == "2024-10-01" for frame in light.frames])
    x, y = light.x_px[night], light.y_px[night]
    inside = (x > -0.5) & (x < SPEC.nx - 0.5) & (y > -0.5) & (y < SPEC.ny - 0.5)
    assert (inside.any(axis=0) & ~inside.all(axis=0)).sum() >= 3
    assert np.hypot(np.ptp(x[:, 0]), np.ptp(y[:, 0])) > 20
    assert inside[:, :3].all()


def test_a_night_that_is_too_short_is_refused() -> None:
    with pytest.raises(ConfigError, match="usable hours"):
        make_world(SynthSpec(n_nights=1, frames_per_night=800))
