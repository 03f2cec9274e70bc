"""The engine: batches, the bounded queue, deadlines, clients that have gone, swaps and listeners."""

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.server.engine import Background, Engine, Late, Limits, Overloaded, load_served
from pipeline.serving.predictor import Outputs
from tests.stored import SIZE, write_model

PIXELS = np.random.default_rng(1).integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)


class Held:
    """A model that answers only when it is let go, and keeps the sizes of its batches."""

    def __init__(self, predictor):
        self.predictor, self.gate, self.begun, self.sizes = predictor, threading.Event(), threading.Event(), []

    def run(self, pixels, *others):
        self.sizes.append(len(pixels))
        self.begun.set()
        assert self.gate.wait(10)
        return self.predictor.run(pixels, *others)


@pytest.fixture(scope="module")
def served(model_folder):
    return load_served("small", model_folder, 1)


@pytest.fixture
def held(served):
    """A model that waits, as `Served` and as `Held`."""
    predictor = Held(served.predictor)
    return replace(served, predictor=predictor), predictor


def run(engine, work):
    """Run a coroutine function with the engine, and close that."""

    async def whole():
        async with asyncio.timeout(20):
            return await work()

    try:
        return asyncio.run(whole())
    finally:
        engine.close()


async def begun(predictor):
    """Wait until the model runs its first batch."""
    assert await asyncio.to_thread(predictor.begun.wait, 10)


def test_each_picture_gets_its_own_answer(served):
    engine = Engine(served, Limits(runners=2))

    async def work():
        return await asyncio.gather(*(engine.answer(pixels) for pixels in PIXELS))

    answers = run(engine, work)
    np.testing.assert_allclose([answer.probs for answer in answers], served.predictor.predict_pixels(PIXELS), rtol=1e-5)
    assert {answer.model for answer in answers} == {served}


def test_pictures_that_come_while_the_model_runs_are_run_together_at_most_eight_at_once(held):
    model, predictor = held
    engine = Engine(model)

    async def work():
        first = asyncio.create_task(engine.answer(PIXELS[0]))
        await begun(predictor)
        others = [asyncio.create_task(engine.answer(pixels)) for pixels in PIXELS[:11]]
        await asyncio.sleep(0)
        assert engine.depth == 11
        predictor.gate.set()
        await asyncio.gather(first, *others)

    run(engine, work)
    assert predictor.sizes == [1, 8, 3]


def test_a_batch_waits_for_pictures_that_are_being_decoded_but_not_for_long(held):
    model, predictor = held
    predictor.gate.set()
    engine = Engine(model, Limits(wait_seconds=0.1))

    async def work():
        engine.coming = 2
        first = asyncio.create_task(engine.answer(PIXELS[0]))
        await asyncio.sleep(0.02)
        assert predictor.sizes == []
        engine.coming = 1  # the other one is broken, say, or large
        started = time.perf_counter()
        await asyncio.gather(first, engine.answer(PIXELS[1]))
        return time.perf_counter() - started

    assert 0.05 < run(engine, work) < 5
    assert predictor.sizes == [2]


def test_a_full_queue_refuses_and_says_when_to_try_again(held):
    model, predictor = held
    engine = Engine(model, Limits(queue=3))

    async def work():
        first = asyncio.create_task(engine.answer(PIXELS[0]))
        await begun(predictor)
        waiting = [asyncio.create_task(engine.answer(pixels)) for pixels in PIXELS[:3]]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refusal:
            await engine.answer(PIXELS[0])
        predictor.gate.set()
        await asyncio.gather(first, *waiting)
        return refusal.value.retry_seconds

    assert run(engine, work) >= 1


def test_an_answer_after_the_deadline_is_refused_and_a_picture_that_waits_is_not_run(held):
    model, predictor = held
    engine = Engine(model, Limits(deadline_seconds=0.1))

    async def work():
        tasks = [asyncio.create_task(engine.in_time(engine.answer(PIXELS[0])))]
        await begun(predictor)
        tasks.append(asyncio.create_task(engine.in_time(engine.answer(PIXELS[1]))))
        refusals = await asyncio.gather(*tasks, return_exceptions=True)
        predictor.gate.set()
        await engine.answer(PIXELS[2])
        return refusals

    assert [type(refusal) for refusal in run(engine, work)] == [Late, Late]
    assert predictor.sizes == [1, 1]


def test_the_picture_of_a_client_that_has_gone_is_not_run(held):
    model, predictor = held
    engine = Engine(model)

    async def work():
        first = asyncio.create_task(engine.answer(PIXELS[0]))
        await begun(predictor)
        gone, stays = (asyncio.create_task(engine.answer(pixels)) for pixels in PIXELS[:2])
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        predictor.gate.set()
        await asyncio.gather(first, stays)

    run(engine, work)
    assert predictor.sizes == [1, 1]


def test_after_a_swap_the_new_model_answers_and_what_was_prepared_for_the_old_one_is_answered_by_it(held, tmp_path):
    old, predictor = held
    new = load_served("new", write_model(tmp_path / "new", seed=5), 1)
    engine = Engine(old)

    async def work():
        first = asyncio.create_task(engine.answer(PIXELS[0]))
        await begun(predictor)
        before = asyncio.create_task(engine.answer(PIXELS[1]))
        await asyncio.sleep(0)
        engine.swap(new)
        after = [asyncio.create_task(engine.answer(pixels, model)) for pixels, model in ((PIXELS[2], None), (PIXELS[3], old))]
        await asyncio.sleep(0)
        predictor.gate.set()
        return await asyncio.gather(first, before, *after)

    answers = run(engine, work)
    assert [answer.model for answer in answers] == [old, old, new, old]
    np.testing.assert_allclose(answers[2].probs, new.predictor.predict_pixels(PIXELS[2:3])[0], rtol=1e-5)


def test_a_fault_of_the_model_reaches_who_asked_and_the_engine_goes_on(served):
    engine = Engine(served)

    async def work():
        with pytest.raises(Exception, match="pixels"):
            await engine.answer(PIXELS[0][:4])
        return await engine.answer(PIXELS[0])

    assert run(engine, work).model is served


def test_listeners_get_each_batch_in_another_thread_and_one_that_fails_disturbs_nobody(served, caplog):
    engine, heard = Engine(served), []
    engine.listeners += [lambda *_: 1 / 0, lambda pixels, answers: heard.append((threading.current_thread().name, pixels, answers))]

    async def work():
        return await engine.answer(PIXELS[0])

    answer = run(engine, work)
    ((thread, pixels, answers),) = heard
    assert thread == "listeners"
    assert (pixels[0] is not None and np.array_equal(pixels[0], PIXELS[0]), answers[0] is answer) == (True, True)
    assert "ZeroDivisionError" in caplog.text


def test_a_listener_that_hangs_delays_no_answer_and_what_it_cannot_take_is_dropped(served):
    engine, gate = Engine(served, Limits(queue=1000)), threading.Event()
    engine.listeners.append(lambda *_: gate.wait(10))

    async def work():
        for _ in range(300):
            await engine.answer(PIXELS[0])
        gate.set()

    run(engine, work)
    assert engine.background.dropped >= 300 - 256 - 1


def test_unfamiliarity_and_features_are_in_the_answer_if_the_model_has_them(served):
    class Full:
        def run(self, pixels, *others):
            assert set(others) == {"unfamiliarity", "features"}
            rows = np.arange(len(pixels), dtype=np.float32)
            return Outputs(np.eye(3, dtype=np.float32)[: len(pixels)], rows + 0.5, rows[:, None] + [1, 2])

    def ask(model):
        engine = Engine(model)

        async def work():
            return await engine.answer(PIXELS[0])

        return run(engine, work)

    answer = ask(replace(served, predictor=Full()))
    assert (answer.unfamiliarity, answer.features.tolist()) == (0.5, [1, 2])
    answer = ask(served)
    assert (answer.unfamiliarity, answer.features) == (None, None)


def test_what_waits_for_listeners_holds_a_bounded_number_of_bytes():
    background, gate, called = Background("listeners"), threading.Event(), []
    background.submit(0, gate.wait, 10)
    for number in range(5):
        background.submit(20 << 20, called.append, number)
    gate.set()
    background.stop(5)
    assert (called, background.dropped) == ([0, 1, 2], 2)


@pytest.mark.parametrize(("side", "sizes"), [(128, [1, 8, 2]), (224, [1, 2, 2, 2, 2, 2]), (512, [1] * 11)])
def test_a_batch_of_large_pictures_is_smaller(served, side, sizes):
    class Large(Held):
        def run(self, pixels, *others):
            return super().run(pixels[:, :SIZE, :SIZE], *others)

    predictor = Large(served.predictor)
    engine, pixels = Engine(replace(served, predictor=predictor)), np.zeros((side, side, 3), np.uint8)

    async def work():
        tasks = [asyncio.create_task(engine.answer(pixels))]
        await begun(predictor)
        tasks += [asyncio.create_task(engine.answer(pixels)) for _ in range(10)]
        await asyncio.sleep(0)
        predictor.gate.set()
        await asyncio.gather(*tasks)

    run(engine, work)
    assert predictor.sizes == sizes
