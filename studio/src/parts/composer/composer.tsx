// The form: everything of a request, what it will take, and the button.

import { useEffect, useState } from 'preact/hooks';
import { drawOrThrow } from '../../state/actions';
import { asProblem } from '../../server/api';
import { asBody, change, check, clearDraft, completed, draft, refused, whole, type FieldErrors } from '../../drafting/draft';
import { estimate } from '../../drafting/estimate';
import { FIRST_MODEL } from '../../drafting/firstModel';
import { explain } from '../../server/explain';
import { rememberDraft } from '../../state/history';
import { duration, t, usd } from '../../i18n';
import { active } from '../../server/live';
import { avatars, model, reached, tell } from '../../state/store';
import type { Content } from '../../server/types';
import { Extras, isOfExtras } from './extras';
import { LoraPicker, TriggerWords } from './loraPicker';
import { PromptField } from './promptField';
import { hasStyles, StylesField } from './stylesField';
import { QueueButton } from '../queue';
import { isOfSource, SourcePanel } from '../source/panel';
import { CountField, NumberFields, SamplerField, SeedField, SizeField } from './settings';
import { Button, Field } from '../ui';

/** Fields that show an error of their own; any other error stands above the button. */
const SHOWN = ['prompt', 'negative_prompt', 'width', 'height', 'steps', 'cfg', 'scheduler', 'seed', 'num_images'];
const LATE = ['prompt', 'mask', 'outpaint'];
const isShown = (field: string): boolean =>
  SHOWN.includes(field) || (field === 'styles' && hasStyles()) || isOfSource(field) || isOfExtras(field) || (field === 'avatar_id' && (avatars.value ?? []).length > 0) || field === 'loras' || /^loras\[\d+\]\.scale$/.test(field);

export function Composer({ onAccepted }: { onAccepted: (content: Content) => void }) {
  const by = model.value ?? FIRST_MODEL;
  const now = completed(draft.value, by);
  // Pressed before the model's limits were here to check against: it goes as soon as they are.
  const [isWanted, setWanted] = useState(false);
  const errors: FieldErrors = { ...refused.value };
  for (const [field, text] of Object.entries(check(now, by)))
    // A blank prompt or a mask to come is no mistake before the button was pressed.
    if (!LATE.includes(field) || (field === 'prompt' && now.prompt.trim())) errors[field] ??= text;
  const submit = async () => {
    if (!model.value) return setWanted(true);
    setWanted(false);
    const wrong = check(now, by);
    if (Object.keys(wrong).length) {
      refused.value = wrong;
      focusFirstError();
      return;
    }
    refused.value = {};
    try {
      rememberDraft(draft.value);
      onAccepted(await drawOrThrow(asBody(draft.value)));
    } catch (error) {
      const problem = asProblem(error);
      const field = (problem.field ?? '')
        .replace(/^custom_prompt$/, 'prompt')
        .replace(/^styles\[\d+\]$/, 'styles');
      // A lost connection is told by the banner as long as it lasts, not by a text that stays.
      if (problem.status === 0) return;
      refused.value = { [isShown(field) ? field : '']: explain(problem) };
      focusFirstError();
    }
  };
  const isKnown = model.value !== null;
  useEffect(() => {
    if (isWanted && isKnown) void submit();
  }, [isWanted, isKnown]);
  return (
    <form
      class="composer"
      aria-label={t('nav.create')}
      noValidate
      onSubmit={(e) => {
        e.preventDefault();
        void submit();
      }}
      onKeyDown={(e) => {
        // What is written in a dialog of the form's is not the request.
        const isOfDialog = (e.target as Element).closest('dialog') !== null;
        if (e.key === 'Enter' && (e.ctrlKey || e.metaKey) && !isOfDialog) {
          e.preventDefault();
          void submit();
        }
      }}
    >
      <div class="composer-fields">
        <AvatarField error={errors.avatar_id} />
        <PromptField error={errors.prompt} />
        <TriggerWords />
        <Field label={t('form.negative')} error={errors.negative_prompt}>
          {(attributes) => (
            <textarea
              {...attributes}
              name="negative"
              rows={1}
              value={draft.value.negative}
              onInput={(e) => change({ negative: e.currentTarget.value })}
            />
          )}
        </Field>
        <StylesField error={errors.styles} />
        <LoraPicker errors={errors} />
        <SourcePanel of={now} model={by} errors={errors} />
        <SizeField of={now} model={by} errors={errors} />
        <NumberFields of={now} model={by} errors={errors} />
        <SamplerField model={by} error={errors.scheduler} />
        <div class="seed-and-count">
          <SeedField of={now} model={by} errors={errors} />
          <CountField of={now} model={by} errors={errors} />
        </div>
        <Extras of={now} model={by} errors={errors} />
      </div>
      <div class="composer-foot">
        {errors[''] && (
          <p class="field-error" role="alert">
            {errors['']}
          </p>
        )}
        <div class="row between">
          <Expected />
          {active.value.length > 0 && <QueueButton />}
          <Button icon="undo" kind="quiet" iconOnly onClick={reset}>
            {t('form.reset')}
          </Button>
        </div>
        <Button
          type="submit"
          kind="accent"
          icon="create"
          disabled={!reached.value}
          aria-busy={isWanted || undefined}
          aria-keyshortcuts="Control+Enter Meta+Enter"
        >
          {t('action.draw')}
          <kbd aria-hidden="true">Ctrl ↵</kbd>
        </Button>
      </div>
    </form>
  );
}

/** Everything as the model's defaults have it; it can be taken back. */
function reset(): void {
  const before = draft.value;
  rememberDraft(before);
  clearDraft();
  tell(t('told.reset'), { action: { label: t('action.undo'), run: () => change(before) } });
}

function focusFirstError(): void {
  requestAnimationFrame(() =>
    document.querySelector<HTMLElement>('.composer [aria-invalid=true]')?.focus(),
  );
}

function AvatarField({ error }: { error?: string }) {
  const all = avatars.value ?? [];
  if (!all.length) return null;
  return (
    <Field label={t('form.avatar')} error={error}>
      {(attributes) => (
        <select
          {...attributes}
          value={draft.value.avatarId ?? ''}
          onChange={(e) => change({ avatarId: e.currentTarget.value || null })}
        >
          <option value="">{t('form.noAvatar')}</option>
          {all.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}

/** The time and cost of what the button would do, judged by earlier pictures. */
function Expected() {
  const now = whole.value;
  const found = now && estimate({ ...now, num_images: now.count });
  return (
    <p class="expected">
      {found ? (
        <>
          <span class="num">≈ {duration(found.seconds)}</span>
          <span class="num">{found.usd === null ? t('cost.none') : `≈ ${usd(found.usd)}`}</span>
        </>
      ) : (
        <span>{t('form.noEstimate')}</span>
      )}
    </p>
  );
}
