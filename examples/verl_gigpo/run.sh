#!/usr/bin/env bash
# GiGPO in verl on one GPU: bash run.sh [more overrides]
set -euo pipefail
cd "$(dirname "$0")"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" # Ray's workers import corridor.py
python make_data.py data/corridor.parquet
python -m verl.trainer.main_ppo \
    trainer.v1.trainer_mode=gigpo_fast_sync \
    algorithm.adv_estimator=gigpo_fast_gigpo \
    algorithm.gamma=0.9 \
    +algorithm.gigpo.step_advantage_w=1.0 \
    +algorithm.gigpo.mode=mean_norm \
    actor_rollout_ref.actor.policy_loss.loss_mode=gigpo_fast_vanilla \
    actor_rollout_ref.rollout.agent.agent_loop_config_path="$PWD/agent_loop.yaml" \
    actor_rollout_ref.rollout.agent.default_agent_loop=corridor \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=32 \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B-Instruct \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=16 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32 \
    data.train_files=data/corridor.parquet \
    data.val_files=data/corridor.parquet \
    data.train_batch_size=16 \
    data.max_prompt_length=128 \
    data.max_response_length=8 \
    trainer.n_gpus_per_node=1 \
    trainer.nnodes=1 \
    trainer.total_epochs=4 \
    trainer.test_freq=-1 \
    trainer.logger=console \
    "$@"
