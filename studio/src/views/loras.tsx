// The library of LoRA files: put in, found, described, taken out.

import { useState } from 'preact/hooks';
import { api, asProblem } from '../server/api';
import type { FieldErrors } from '../drafting/draft';
import { explain } from '../server/explain';
import { NO_FILTER, pathOf } from '../state/galleryFilter';
import { bytes, moment, number, plural, t } from '../i18n';
import { LoraCover } from '../parts/pictures/cover';
import { CoverDialog } from '../parts/pictures/coverDialog';
import { chooseLora, FilePicker, isSought, LoraSearch } from '../parts/composer/loraPicker';
import { takeFiles, UploadRows, uploads } from '../parts/composer/uploads';
import { Button, Confirm, Dialog, Empty, Field, Loading, Slider } from '../parts/ui';
import { go } from '../state/route';
import { keepLora, loras, model, tellProblem } from '../state/store';
import { announce } from '../state/tabs';
import type { Lora, LoraFields } from '../server/types';

export function LorasView() {
  const all = loras.value;
  const [sought, setSought] = useState('');
  const found = (all ?? []).filter((lora) => isSought(lora, sought));
  return (
    <div class="page loras">
      <header class="page-head sticky">
        <h1>{t('nav.loras')}</h1>
        <LoraSearch among={all?.length ?? 0} sought={sought} onSought={setSought} />
        <FilePicker onFiles={(files) => void takeFiles(files)} />
      </header>
      <UploadRows rows={uploads.value} />
      {all === null ? (
        <Loading />
      ) : all.length === 0 ? (
        <Empty icon="loras" title={t('lora.empty')}>
          <p>{t('lora.emptyText')}</p>
        </Empty>
      ) : found.length ? (
        <ul class="cards">
          {found.map((lora) => (
            <LoraCard key={lora.id} lora={lora} />
          ))}
        </ul>
      ) : (
        <p class="muted" role="status">
          {t('lora.noHit', { sought })}
        </p>
      )}
    </div>
  );
}

function LoraCard({ lora }: { lora: Lora }) {
  const [isAsked, setAsked] = useState(false);
  const [isEdited, setEdited] = useState(false);
  const remove = async () => {
    try {
      await api.deleteLora(lora.id);
      loras.value = (loras.value ?? []).filter((one) => one.id !== lora.id);
      announce({ kind: 'library' });
    } catch (error) {
      tellProblem(error);
    }
  };
  const facts: [string, string][] = [
    [t('lora.format'), `${lora.format} · ${lora.algorithm}`],
    [t('lora.rankName'), number(lora.rank)],
    [t('lora.modules'), number(lora.modules)],
    [t('lora.textEncoder'), t(lora.text_encoder ? 'word.yes' : 'word.no')],
    [t('lora.size'), bytes(lora.size_bytes)],
    [t('lora.base'), lora.base_model],
    [t('lora.added'), moment(lora.created_at)],
  ];
  return (
    <li class="card">
      <header class="card-head">
        <LoraCover lora={lora} />
        <h2>{lora.name}</h2>
        <Button icon="create" kind="quiet" iconOnly onClick={() => setEdited(true)}>
          {t('lora.edit', { name: lora.name })}
        </Button>
        <Button icon="trash" kind="quiet" iconOnly onClick={() => setAsked(true)}>
          {t('lora.delete', { name: lora.name })}
        </Button>
      </header>
      {lora.description && <p class="prompt-text">{lora.description}</p>}
      {lora.trigger_words.length > 0 && (
        <p class="words">
          <span class="label">{t('form.triggers')}</span>
          {lora.trigger_words.slice(0, 12).map((word) => (
            <code key={word}>{word}</code>
          ))}
        </p>
      )}
      {lora.tags.length > 0 && <p class="muted small">{lora.tags.join(' · ')}</p>}
      <details class="details">
        <summary>{t('lora.file')}</summary>
        <dl class="facts">
          {facts.map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
        {lora.strays.length > 0 && (
          <p class="muted small">{plural('lora.unmatched', lora.strays.length)}</p>
        )}
      </details>
      <footer class="row between">
        <a class="button quiet" href={`#/${pathOf({ ...NO_FILTER, lora: lora.id })}`}>
          {t('lora.pictures')}
        </a>
        <Button
          onClick={() => {
            chooseLora(lora);
            go('create');
          }}
        >
          {t('lora.use')}
        </Button>
      </footer>
      {isAsked && (
        <Confirm
          title={t('lora.deleteTitle', { name: lora.name })}
          text={t('lora.deleteText')}
          action={t('action.delete')}
          onConfirm={() => void remove()}
          onClose={() => setAsked(false)}
        />
      )}
      {isEdited && <LoraDialog lora={lora} onClose={() => setEdited(false)} />}
    </li>
  );
}

const words = (text: string): string[] => text.split(',').map((one) => one.trim()).filter(Boolean);

function LoraDialog({ lora, onClose }: { lora: Lora; onClose: () => void }) {
  const [fields, setFields] = useState({
    name: lora.name,
    description: lora.description,
    tags: lora.tags.join(', '),
    trigger_words: lora.trigger_words.join(', '),
    default_scale: lora.default_scale,
    cover_image_id: lora.cover_image_id,
  });
  const [errors, setErrors] = useState<FieldErrors>({});
  const [choosesCover, setChoosesCover] = useState(false);
  const [isDirty, setDirty] = useState(false);
  const set = (changes: Partial<typeof fields>) => {
    setFields({ ...fields, ...changes });
    setErrors({});
    setDirty(true);
  };
  const save = async () => {
    if (!fields.name.trim()) return setErrors({ name: t('check.name') });
    const body: LoraFields = {
      ...fields,
      tags: words(fields.tags),
      trigger_words: words(fields.trigger_words),
    };
    try {
      keepLora(await api.changeLora(lora.id, body));
      onClose();
    } catch (error) {
      const problem = asProblem(error);
      const field = problem.field?.replace(/\[\d+\]$/, '') ?? '';
      setErrors({ [field in fields ? field : '']: explain(problem) });
    }
  };
  const bounds = model.value?.lora_scale;
  const text = (name: 'name' | 'tags' | 'trigger_words', label: string, hint?: string) => (
    <Field label={label} error={errors[name]} hint={hint}>
      {(attributes) => (
        <input
          {...attributes}
          type="text"
          value={fields[name]}
          onInput={(e) => set({ [name]: e.currentTarget.value })}
        />
      )}
    </Field>
  );
  return (
    <Dialog title={t('lora.edit', { name: lora.name })} onClose={onClose} isDirty={isDirty}>
      <form
        noValidate
        class="stack"
        onSubmit={(e) => {
          e.preventDefault();
          void save();
        }}
      >
        <div class="row">
          <LoraCover lora={lora} />
          <Button icon="image" onClick={() => setChoosesCover(true)}>
            {t('cover.choose')}
          </Button>
          {fields.cover_image_id !== lora.cover_image_id && (
            <span class="muted small">{t('cover.changed')}</span>
          )}
        </div>
        {text('name', t('avatar.name'))}
        {text('trigger_words', t('form.triggers'), t('lora.commas'))}
        {text('tags', t('lora.tags'), t('lora.commas'))}
        <Field label={t('lora.notes')} error={errors.description}>
          {(attributes) => (
            <textarea
              {...attributes}
              rows={3}
              maxLength={4000}
              value={fields.description}
              onInput={(e) => set({ description: e.currentTarget.value })}
            />
          )}
        </Field>
        <Slider
          label={t('lora.defaultScale')}
          value={fields.default_scale}
          min={bounds?.minimum ?? -2}
          max={bounds?.maximum ?? 2}
          step={0.05}
          error={errors.default_scale}
          onChange={(default_scale) => set({ default_scale })}
        />
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
          loraId={lora.id}
          onChoose={(cover_image_id) => set({ cover_image_id })}
          onClose={() => setChoosesCover(false)}
        />
      )}
    </Dialog>
  );
}
