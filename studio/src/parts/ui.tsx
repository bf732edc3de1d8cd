// The few controls that every view is made of.

import type { ComponentChildren, JSX } from 'preact';
import { useEffect, useId, useRef, useState } from 'preact/hooks';
import { t } from '../i18n';
import { Icon, type IconName } from './icons';
import { NumberInput } from './composer/numberInput';

interface ButtonProps extends Omit<JSX.IntrinsicElements['button'], 'icon'> {
  icon?: IconName;
  kind?: 'plain' | 'accent' | 'quiet' | 'danger';
  /** Only the icon is seen; `children` becomes its name. */
  iconOnly?: boolean;
}

export function Button({ icon, kind = 'plain', iconOnly, children, ...rest }: ButtonProps) {
  return (
    <button
      type="button"
      title={iconOnly && typeof children === 'string' ? children : undefined}
      {...rest}
      class={`button ${kind} ${iconOnly ? 'icon-only' : ''}`}
    >
      {icon && <Icon name={icon} />}
      {iconOnly ? <span class="unseen">{children}</span> : children}
    </button>
  );
}

interface FieldProps {
  label: string;
  error?: string | null;
  hint?: string | null;
  /** Beside the label, on the right. */
  aside?: ComponentChildren;
  children: (attributes: {
    id: string;
    'aria-invalid'?: 'true';
    'aria-describedby'?: string;
  }) => ComponentChildren;
}

/** A labelled control with its hint, or the error that it caused. */
export function Field({ label, error, hint, aside, children }: FieldProps) {
  const id = useId();
  const note = error ?? hint;
  return (
    <div class="field">
      <div class="field-head">
        <label for={id}>{label}</label>
        {aside}
      </div>
      {children({
        id,
        ...(error ? { 'aria-invalid': 'true' as const } : {}),
        ...(note ? { 'aria-describedby': `${id}-note` } : {}),
      })}
      {note && (
        <p id={`${id}-note`} class={error ? 'field-error' : 'field-hint'}>
          {note}
        </p>
      )}
    </div>
  );
}

interface SliderProps {
  label: string;
  value: number;
  min: number;
  max: number;
  step: number;
  error?: string | null;
  onChange: (value: number) => void;
}

/** A slider and, for exact values, a number field that shares its label. */
export function Slider({ label, value, min, max, step, error, onChange }: SliderProps) {
  const shown = Number.isFinite(value) ? Math.min(max, Math.max(min, value)) : min;
  // Filled from 0 where the range has negative numbers: 0 is nothing, not half.
  const partOf = (one: number) => ((one - min) / (max - min)) * 100;
  const zero = partOf(Math.max(0, min));
  const [from, to] = [Math.min(zero, partOf(shown)), Math.max(zero, partOf(shown))];
  return (
    <Field
      label={label}
      error={error}
      aside={
        <NumberInput
          aria-label={`${label} (${t('form.exact')})`}
          aria-invalid={error ? 'true' : undefined}
          least={min}
          most={max}
          stepBy={step}
          value={value}
          onChange={(next) => onChange(next ?? NaN)}
        />
      }
    >
      {(attributes) => (
        <input
          {...attributes}
          type="range"
          min={min}
          max={max}
          step={step}
          value={shown}
          class={min < 0 ? 'both' : ''}
          style={{ '--from': `${from}%`, '--part': `${to}%`, '--zero': `${zero}%` }}
          onInput={(e) => onChange(e.currentTarget.valueAsNumber)}
        />
      )}
    </Field>
  );
}

export function Empty(props: { icon: IconName; title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <Icon name={props.icon} size={32} />
      <h2>{props.title}</h2>
      {props.children}
    </div>
  );
}

export function Loading({ label }: { label?: string }) {
  return (
    <p class="loading" role="status">
      <span class="spinner" aria-hidden="true" /> {label ?? t('state.loading')}
    </p>
  );
}

interface DialogProps {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
  wide?: boolean;
  /** Something was written that closing would lose: it is asked before. */
  isDirty?: boolean;
}

/** A modal dialog: the browser keeps the focus in it and gives it back. */
export function Dialog({ title, onClose, children, wide, isDirty }: DialogProps) {
  const element = useRef<HTMLDialogElement>(null);
  const [asks, setAsks] = useState(false);
  const id = useId();
  useEffect(() => {
    element.current?.showModal();
  }, []);
  const leave = () => (isDirty ? setAsks(true) : element.current?.close());
  return (
    <dialog
      ref={element}
      class={wide ? 'wide' : ''}
      aria-labelledby={id}
      onClose={onClose}
      onCancel={(e) => {
        if (!isDirty) return;
        e.preventDefault();
        setAsks(!asks);
      }}
      // A second Esc in a row closes without the event above.
      onKeyDown={(e) => {
        if (e.key !== 'Escape' || !isDirty) return;
        e.preventDefault();
        setAsks(!asks);
      }}
      onMouseDown={(e) => e.target === element.current && leave()}
    >
      <div class="dialog-body">
        <header>
          <h2 id={id}>{title}</h2>
          <Button icon="close" kind="quiet" iconOnly onClick={leave}>
            {t('action.close')}
          </Button>
        </header>
        {asks && (
          <div class="discard row between" role="alert">
            <span>{t('dialog.unsaved')}</span>
            <span class="row">
              <Button onClick={() => setAsks(false)}>{t('dialog.goOn')}</Button>
              <Button kind="danger" onClick={() => element.current?.close()}>
                {t('dialog.discard')}
              </Button>
            </span>
          </div>
        )}
        {children}
      </div>
    </dialog>
  );
}

interface ConfirmProps {
  title: string;
  text: string;
  action: string;
  onConfirm: () => void;
  onClose: () => void;
}

export function Confirm({ title, text, action, onConfirm, onClose }: ConfirmProps) {
  return (
    <Dialog title={title} onClose={onClose}>
      <p>{text}</p>
      <footer class="row end">
        <Button onClick={onClose}>{t('action.keep')}</Button>
        <Button
          kind="danger"
          onClick={() => {
            onConfirm();
            onClose();
          }}
        >
          {action}
        </Button>
      </footer>
    </Dialog>
  );
}

export function Bar({ part, label }: { part: number | null; label: string }) {
  const value = part === null ? undefined : Math.round(part * 100);
  return (
    <div
      class={`bar ${part === null ? 'unknown' : ''}`}
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={value}
    >
      <span style={{ width: `${value ?? 100}%` }} />
    </div>
  );
}
