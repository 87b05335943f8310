"""The ring of latencies: what a bucket says, and how little it keeps."""

from netagent.core.latency import BUCKET_S, BUCKETS, VALUES_KEPT, Bucket, LatencyRing


def test_a_bucket_has_count_median_and_maximum() -> None:
    ring = LatencyRing()
    for duration_s in (0.001, 0.5, 0.002):
        ring.observe(1000.0, duration_s)
    ring.observe(1000.0 + 3 * BUCKET_S, 0.004)
    assert ring.buckets(1016.0) == [Bucket(1000.0, 3, 0.002, 0.5), Bucket(1015.0, 1, 0.004, 0.004)]


def test_quiet_times_and_what_is_long_ago_have_no_bucket() -> None:
    ring = LatencyRing()
    assert ring.buckets(5.0) == []
    ring.observe(0.0, 1.0)
    ring.observe(100.0, 1.0)
    assert [one.at_s for one in ring.buckets(BUCKETS * BUCKET_S + 50)] == [100.0]
    assert ring.buckets(10_000.0) == []


def test_a_flood_is_counted_whole_and_kept_small() -> None:
    ring = LatencyRing()
    for number in range(100_000):
        ring.observe(50.0, number / 1000)
    (bucket,) = ring.buckets(50.0)
    assert (bucket.count, bucket.max_s) == (100_000, 99.999)
    assert abs(bucket.p50_s - 50.0) < 1.0
    assert len(ring._values) <= VALUES_KEPT


def test_old_buckets_go() -> None:
    ring = LatencyRing()
    for number in range(10 * BUCKETS):
        ring.observe(number * BUCKET_S, 0.1)
    assert len(ring.buckets(0.0)) == BUCKETS + 1
