// Avatars: characters with a prompt, a LoRA and its scale of their own.

import { useState } from 'preact/hooks';
import { api, asProblem } from '../server/api';
import { change, type FieldErrors } from '../drafting/draft';
import { number, t } from '../i18n';
import { Button, Confirm, Dialog, Empty, Field, Loading, Slider } from '../parts/ui';
import { go } from '../state/route';
import { explain } from '../server/explain';
import { SamplerOptions } from '../parts/composer/settings';
import { Cover } from '../parts/pictures/cover';
import { CoverDialog } from '../parts/pictures/coverDialog';
import { avatars, loras, model, tellProblem } from '../state/store';
import type { Avatar, AvatarFields, Model } from '../server/types';

const NEW: AvatarFields = {
  name: '',
  base_prompt: '',
  negative_prompt: '',
  lora_model_id: null,
  lora_scale: 0.9,
  scheduler: null,
  cover_image_id: null,
};

export function AvatarsView() {
  const all = avatars.value;
  const [edited, setEdited] = useState<Avatar | 'new' | null>(null);
  return (
    <div class="page avatars">
      <header class="page-head">
        <h1>{t('nav.avatars')}</h1>
        <Button icon="plus" kind="accent" onClick={() => setEdited('new')}>
          {t('avatar.new')}
        </Button>
      </header>
      {all === null ? (
        <Loading />
      ) : all.length === 0 ? (
        <Empty icon="avatars" title={t('avatar.empty')}>
          <p>{t('avatar.emptyText')}</p>
        </Empty>
      ) : (
        <ul class="cards">
          {all.map((one) => (
            <AvatarCard key={one.id} avatar={one} onEdit={() => setEdited(one)} />
          ))}
        </ul>
      )}
      {edited && (
        <AvatarDialog
          avatar={edited === 'new' ? null : edited}
          onClose={() => setEdited(null)}
        />
      )}
    </div>
  );
}

function AvatarCard({ avatar, onEdit }: { avatar: Avatar; onEdit: () => void }) {
  const [isAsked, setAsked] = useState(false);
  const lora = loras.value?.find((one) => one.id === avatar.lora_model_id);
  const remove = async () => {
    try {
      await api.deleteAvatar(avatar.id);
      avatars.value = (avatars.value ?? []).filter((one) => one.id !== avatar.id);
    } catch (error) {
      tellProblem(error);
    }
  };
  return (
    <li class="card">
      <header class="card-head">
        <Cover url={avatar.cover_url} name={avatar.name} />
        <h2>{avatar.name}</h2>
        <Button icon="trash" kind="quiet" iconOnly onClick={() => setAsked(true)}>
          {t('avatar.delete', { name: avatar.name })}
        </Button>
      </header>
      <p class="prompt-text">{avatar.base_prompt}</p>
      {avatar.negative_prompt && <p class="prompt-text muted">{avatar.negative_prompt}</p>}
      <p class="muted small">
        {lora ? `${lora.name} · ${number(avatar.lora_scale, 2, 2)}` : t('avatar.noLora')}
      </p>
      <footer class="row between">
        <Button kind="quiet" onClick={onEdit}>
          {t('action.edit')}
        </Button>
        <Button
          onClick={() => {
            change({ avatarId: avatar.id });
            go('create');
          }}
        >
          {t('avatar.use')}
        </Button>
      </footer>
      {isAsked && (
        <Confirm
          title={t('avatar.deleteTitle', { name: avatar.name })}
          text={t('avatar.deleteText')}
          action={t('action.delete')}
          onConfirm={() => void remove()}
          onClose={() => setAsked(false)}
        />
      )}
    </li>
  );
}

function AvatarDialog({ avatar, onClose }: { avatar: Avatar | null; onClose: () => void }) {
  const [fields, setFields] = useState<AvatarFields>(avatar ? fieldsOf(avatar) : NEW);
  const [errors, setErrors] = useState<FieldErrors>({});
  const [isDirty, setDirty] = useState(false);
  const [choosesCover, setChoosesCover] = useState(false);
  const set = (changes: Partial<AvatarFields>) => {
    setFields({ ...fields, ...changes });
    setErrors({});
    setDirty(true);
  };
  const save = async () => {
    const wrong: FieldErrors = {};
    if (!fields.name.trim()) wrong.name = t('check.name');
    if (!fields.base_prompt.trim()) wrong.base_prompt = t('check.avatar');
    setErrors(wrong);
    if (fields.lora_model_id && !(fields.lora_scale >= 0 && fields.lora_scale <= 1))
      wrong.lora_scale = t('check.range', { min: number(0), max: number(1) });
    if (Object.keys(wrong).length) {
      requestAnimationFrame(() =>
        document.querySelector<HTMLElement>('dialog [aria-invalid=true]')?.focus(),
      );
      return;
    }
    try {
      const saved = avatar
        ? await api.changeAvatar(avatar.id, fields)
        : await api.createAvatar(fields);
      avatars.value = [saved, ...(avatars.value ?? []).filter((one) => one.id !== saved.id)];
      onClose();
    } catch (error) {
      const problem = asProblem(error);
      const field = problem.field && problem.field in fields ? problem.field : '';
      setErrors({ [field]: explain(problem) });
    }
  };
  return (
    <Dialog title={t(avatar ? 'avatar.change' : 'avatar.new')} onClose={onClose} isDirty={isDirty}>
      <form
        noValidate
        class="stack"
        onSubmit={(e) => {
          e.preventDefault();
          void save();
        }}
      >
        <div class="row">
          <Cover url={avatar?.cover_url} name={fields.name} />
          <Button icon="image" onClick={() => setChoosesCover(true)}>
            {t('cover.choose')}
          </Button>
          {fields.cover_image_id !== (avatar?.cover_image_id ?? null) && (
            <span class="muted small">{t('cover.changed')}</span>
          )}
        </div>
        <Field label={t('avatar.name')} error={errors.name}>
          {(attributes) => (
            <input
              {...attributes}
              type="text"
              maxLength={200}
              value={fields.name}
              onInput={(e) => set({ name: e.currentTarget.value })}
            />
          )}
        </Field>
        <Field label={t('avatar.prompt')} error={errors.base_prompt} hint={t('avatar.promptHint')}>
          {(attributes) => (
            <textarea
              {...attributes}
              rows={3}
              value={fields.base_prompt}
              onInput={(e) => set({ base_prompt: e.currentTarget.value })}
            />
          )}
        </Field>
        <Field label={t('form.negative')} error={errors.negative_prompt}>
          {(attributes) => (
            <textarea
              {...attributes}
              rows={2}
              value={fields.negative_prompt}
              onInput={(e) => set({ negative_prompt: e.currentTarget.value })}
            />
          )}
        </Field>
        <Field label="LoRA" error={errors.lora_model_id}>
          {(attributes) => (
            <select
              {...attributes}
              value={fields.lora_model_id ?? ''}
              onChange={(e) => set({ lora_model_id: e.currentTarget.value || null })}
            >
              <option value="">{t('avatar.noLora')}</option>
              {loras.value?.map((lora) => (
                <option key={lora.id} value={lora.id}>
                  {lora.name}
                </option>
              ))}
            </select>
          )}
        </Field>
        {fields.lora_model_id && (
          <Slider
            label={t('form.scale')}
            value={fields.lora_scale}
            min={0}
            max={1}
            step={0.05}
            error={errors.lora_scale}
            onChange={(lora_scale) => set({ lora_scale })}
          />
        )}
        {model.value && (
          <Field label={t('field.scheduler')} error={errors.scheduler}>
            {(attributes) => (
              <select
                {...attributes}
                value={fields.scheduler ?? ''}
                onChange={(e) => set({ scheduler: e.currentTarget.value || null })}
              >
                <SamplerOptions
                  model={model.value as Model}
                  own={t('form.samplerOwn')}
                  chosen={fields.scheduler}
                />
              </select>
            )}
          </Field>
        )}
        {errors[''] && (
          <p class="field-error" role="alert">
            {errors['']}
          </p>
        )}
        <footer class="row end">
          <Button onClick={onClose}>{t('action.cancel')}</Button>
          <Button type="submit" kind="accent">
            {t('action.save')}
          </Button>
        </footer>
      </form>
      {choosesCover && (
        <CoverDialog
          loraId={fields.lora_model_id}
          onChoose={(cover_image_id) => set({ cover_image_id })}
          onClose={() => setChoosesCover(false)}
        />
      )}
    </Dialog>
  );
}

function fieldsOf(avatar: Avatar): AvatarFields {
  const { id: _, cover_url: __, created_at: ___, updated_at: ____, ...fields } = avatar;
  return fields;
}
