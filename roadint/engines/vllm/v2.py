"""vLLM's second model runner: a state of the model keeps the books (needs vLLM)."""

from typing import Any

from torch import nn

from roadint.engines.vllm.worker import RoadWorker


def use_road_model_state(model: nn.Module, vllm_config: Any, road: RoadWorker) -> None:
    """Make the runner take a model state that tells roadint what comes.

    Args:
        model: The model; its state's class, or vLLM's choice, is the base of ours.
        vllm_config: The engine's configuration.
        road: What roadint has in this worker.
    """
    if not vllm_config.use_v2_model_runner:
        return
    from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

    base: Any = resolve_model_state_cls(vllm_config, model)

    class RoadModelState(base):  # type: ignore[misc]
        """The state of a model with edits."""

        _filled = False

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            road.add(new_req_data)

        def remove_request(self, req_id: str) -> None:
            super().remove_request(req_id)
            road.steps.remove(req_id)

        def preprocess_state(
            self,
            input_batch: Any,
            block_tables: Any,
            kv_cache_config: Any,
            num_computed_tokens: Any,
        ) -> None:
            """Called for batches of requests alone."""
            super().preprocess_state(
                input_batch, block_tables, kv_cache_config, num_computed_tokens
            )
            road.steps.fill(
                input_batch.req_ids,
                input_batch.num_computed_tokens_np,
                input_batch.num_scheduled_tokens,
            )
            self._filled = True

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            """Called for trials, too."""
            if self._filled:
                road.begin()
            else:
                road.begin_trial()
            self._filled = False
            return super().prepare_inputs(input_batch, req_states)

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> Any:
            road.begin_trial()
            return super().prepare_dummy_inputs(num_reqs, num_tokens)

        def postprocess_state(self, *args: Any, **kwargs: Any) -> None:
            road.check_ran()
            super().postprocess_state(*args, **kwargs)

    model.get_model_state_cls = lambda: RoadModelState  # type: ignore[assignment]
