// The form: everything of a request, what it will take, and the button.

import { asProblem, api } from '../api';
import { asBody, avatar, change, check, draft, refused, whole, type FieldErrors } from '../draft';
import { estimate } from '../estimate';
import { duration, t, usd } from '../i18n';
import { active, follow } from '../live';
import { avatars, explain, model, prependToFeed, reached } from '../store';
import type { Content } from '../types';
import { LoraPicker, TriggerWords } from './loraPicker';
import { CountField, NumberFields, SeedField, SizeField } from './settings';
import { Button, Field, Loading } from './ui';

/** Fields that show an error of their own; any other error stands above the button. */
const SHOWN = ['prompt', 'negative_prompt', 'width', 'height', 'steps', 'cfg', 'seed', 'num_images'];
const isShown = (field: string): boolean =>
  SHOWN.includes(field) || field === 'avatar_id' || field === 'loras' || /^loras\[\d+\]\.scale$/.test(field);

export function Composer({ onAccepted }: { onAccepted: (content: Content) => void }) {
  const now = whole.value;
  const by = model.value;
  if (!now || !by) return <Loading />;
  const errors: FieldErrors = { ...refused.value };
  for (const [field, text] of Object.entries(check(now, by)))
    // A blank prompt is no mistake before the button was pressed.
    if (field !== 'prompt' || now.prompt.trim()) errors[field] ??= text;
  const submit = async () => {
    const wrong = check(now, by);
    if (Object.keys(wrong).length) {
      refused.value = wrong;
      focusFirstError();
      return;
    }
    refused.value = {};
    try {
      const content = await api.generate(asBody(now));
      prependToFeed([content.id]);
      follow(content);
      onAccepted(content);
    } catch (error) {
      const problem = asProblem(error);
      const field = (problem.field ?? '').replace(/^custom_prompt$/, 'prompt');
      refused.value = { [isShown(field) ? field : '']: explain(problem) };
      focusFirstError();
    }
  };
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
        if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) {
          e.preventDefault();
          void submit();
        }
      }}
    >
      <div class="composer-fields">
        <AvatarField error={errors.avatar_id} />
        <Field
          label={t('form.prompt')}
          error={errors.prompt}
          hint={avatar.value ? t('form.promptAfterAvatar', { name: avatar.value.name }) : null}
        >
          {(attributes) => (
            <textarea
              {...attributes}
              class="prompt"
              rows={4}
              placeholder={t('form.promptExample')}
              value={draft.value.prompt}
              onInput={(e) => change({ prompt: e.currentTarget.value })}
            />
          )}
        </Field>
        <TriggerWords />
        <Field label={t('form.negative')} error={errors.negative_prompt}>
          {(attributes) => (
            <textarea
              {...attributes}
              rows={1}
              value={draft.value.negative}
              onInput={(e) => change({ negative: e.currentTarget.value })}
            />
          )}
        </Field>
        <LoraPicker error={errors.loras} />
        <SizeField of={now} model={by} errors={errors} />
        <NumberFields of={now} model={by} errors={errors} />
        <div class="seed-and-count">
          <SeedField of={now} model={by} errors={errors} />
          <CountField of={now} model={by} errors={errors} />
        </div>
      </div>
      <div class="composer-foot">
        {errors[''] && (
          <p class="field-error" role="alert">
            {errors['']}
          </p>
        )}
        <Expected />
        <Button
          type="submit"
          kind="accent"
          icon="create"
          disabled={!reached.value}
          aria-keyshortcuts="Control+Enter Meta+Enter"
        >
          {t('action.draw')}
          <kbd aria-hidden="true">Ctrl ↵</kbd>
        </Button>
      </div>
    </form>
  );
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
  const waiting = active.value.length;
  return (
    <p class="expected" aria-live="polite">
      {found ? (
        <>
          <span class="num">≈ {duration(found.seconds)}</span>
          <span class="num">{found.usd === null ? t('cost.none') : `≈ ${usd(found.usd)}`}</span>
        </>
      ) : (
        <span>{t('form.noEstimate')}</span>
      )}
      {waiting > 0 && <span class="num">{t('form.ahead', { n: waiting })}</span>}
    </p>
  );
}
